// What Atlassian puts before an app's own scripts (global-bridge.js): the other end of npm @forge/bridge, which calls
// __bridge.callBridge(command, data). Browser code, no module.

(() => {
  const { host } = document.currentScript.dataset;
  const waiting = new Map();
  let calls = 0;

  function theme(mode) {
    document.documentElement.dataset.colorMode = mode;
    document.documentElement.dataset.theme = "dark:dark light:light spacing:spacing typography:typography";
  }

  window.addEventListener("message", ({ source, origin, data }) => {
    if (source !== window.parent || origin !== host) return;
    if (data.type === "theme") theme(data.mode);
    if (data.type !== "answer") return;
    const { resolve, reject } = waiting.get(data.call);
    waiting.delete(data.call);
    if ("error" in data) reject(new Error(data.error));
    else resolve(data.value);
  });

  globalThis.__bridge = {
    callBridge(command, data) {
      calls += 1;
      const call = calls;
      window.parent.postMessage({ type: "call", call, command, data }, host);
      return new Promise((resolve, reject) => waiting.set(call, { resolve, reject }));
    },
  };
})();
