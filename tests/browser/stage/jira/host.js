// Jira's side of the frame: takes what all.js asks for. Browser code, no module.

(() => {
  const { account, appOrigin } = document.currentScript.dataset;
  const frame = document.querySelector("iframe.ap-iframe");
  let themed = false;
  let sized = false;

  function theme() {
    const { colorMode, theme: kinds } = document.documentElement.dataset;
    return { colorMode, ...Object.fromEntries(kinds.split(" ").map((kind) => kind.split(":"))) };
  }

  const post = (message) => frame.contentWindow.postMessage(message, appOrigin);

  async function getToken() {
    // One that gets no answer does not hold back the next one.
    const answer = await fetch(`/token?${new URLSearchParams({ account })}`, { cache: "no-store" });
    if (!answer.ok) throw new Error("no context token");
    return (await answer.json()).token;
  }

  function sizeToParent() {
    sized = true;
    const { top } = frame.getBoundingClientRect();
    frame.style.width = "100%";
    frame.style.height = `${window.innerHeight - top}px`;
  }

  function initializeTheming() {
    themed = true;
    post({ type: "evt", etyp: "theme_initialized", evnt: { initialTheme: theme() } });
  }

  const modules = {
    _globals: { sizeToParent },
    context: { getToken },
    navigator: { reload: () => location.reload() },
    env: { sizeToParent },
    theming: { initializeTheming },
  };

  window.addEventListener("message", async ({ source, origin, data }) => {
    if (source !== frame.contentWindow || origin !== appOrigin || data.eid !== frame.id) return;
    if (data.type === "init") post({ type: "init_received" });
    if (data.type !== "req") return;
    const answer = (args) => data.mid && post({ type: "resp", mid: data.mid, forPlugin: true, args });
    try {
      answer([undefined, await modules[data.mod][data.fn](...data.args)]);
    } catch (error) {
      answer([error.message]);
    }
  });

  window.addEventListener("resize", () => sized && sizeToParent());
  new MutationObserver(() => themed && post({ type: "evt", etyp: "theme_changed", evnt: { newTheme: theme() } })).observe(
    document.documentElement,
    { attributeFilter: ["data-color-mode"] },
  );
})();
