// A stand-in for Atlassian's all.js, written after atlassian-connect-js 5.3.190 (iframe.js): it does to the page what
// that one does, so that the page's content security policy meets the same demands. Browser code, no module.
//
// It injects: margin 0 on the body, by CSSOM; with theming, stylesheets of its own origin and two attributes of the
// html element. It evaluates nothing and writes no style elements.

var AP = (() => {
  const themes = new URL("/themes/", document.currentScript.src);
  // The host says in the frame's name who it is and what may be called. Outside of a host there is no name, and then
  // AP exists all the same, without any module.
  const data = readName();
  const pending = new Map();
  const ap = {};

  function readName() {
    try {
      return JSON.parse(window.name);
    } catch {
      return {};
    }
  }

  function post(message) {
    window.parent.postMessage({ eid: data.extension_id, ...message }, data.origin);
  }

  // A function that promises also takes a callback; then what fails calls it with nothing.
  function remote(mod, fn, returnsPromise) {
    return (...values) => {
      const callback = typeof values.at(-1) === "function" ? values.pop() : undefined;
      const message = { type: "req", mod, fn, args: values };
      if (!callback && !returnsPromise) {
        post(message);
        return undefined;
      }
      const mid = crypto.randomUUID();
      const answered = new Promise((resolve, reject) => {
        pending.set(mid, (error, result) => {
          if (callback) callback(...(returnsPromise ? [result] : [error, result]));
          else if (error !== undefined || result === undefined) reject(error);
          else resolve(result);
        });
      });
      post({ ...message, mid });
      if (callback) return undefined;
      answered.catch((error) => console.warn(`Failed promise: ${error}`));
      return answered;
    };
  }

  for (const [mod, functions] of Object.entries(data.api ?? {})) {
    ap[mod] = Object.fromEntries(
      Object.entries(functions).map(([fn, { returnsPromise }]) => [fn, remote(mod, fn, returnsPromise)]),
    );
  }
  Object.assign(ap, ap._globals);

  // Which stylesheets @atlaskit/tokens asks for, and which attributes it sets.
  function setTheme({ colorMode, dark, light, shape, spacing, typography }) {
    for (const id of [colorMode === "dark" ? dark : light, shape, spacing, typography]) {
      if (id !== undefined) appendTheme(id);
    }
    const kinds = Object.entries({ dark, light, shape, spacing, typography }).filter(([, id]) => id !== undefined);
    document.documentElement.setAttribute("data-theme", kinds.map((kind) => kind.join(":")).join(" "));
    document.documentElement.setAttribute("data-color-mode", colorMode);
  }

  function appendTheme(id) {
    const { href } = new URL(`atlaskit-tokens_${id}.css`, themes);
    if (document.querySelector(`link[href="${href}"]`)) return;
    const link = document.createElement("link");
    link.rel = "stylesheet";
    link.href = href;
    link.dataset.theme = id;
    document.head.append(link);
  }

  window.addEventListener("message", ({ source, origin, data: message }) => {
    if (origin !== data.origin || source !== window.parent) return;
    if (message.type === "resp" && pending.has(message.mid)) {
      const settle = pending.get(message.mid);
      pending.delete(message.mid);
      settle(...message.args);
    }
    if (message.type === "evt" && message.etyp === "theme_initialized") setTheme(message.evnt.initialTheme);
    if (message.type === "evt" && message.etyp === "theme_changed") setTheme(message.evnt.newTheme);
  });

  const options = document.getElementById("ac-iframe-options")?.dataset.options ?? "";
  const removeMargin = () => document.body?.style.setProperty("margin", "0", "important");
  removeMargin();
  window.addEventListener("DOMContentLoaded", removeMargin);
  if (data.origin) {
    post({ type: "init" });
    if (options.includes("sizeToParent:true")) ap.env.sizeToParent();
  }
  return ap;
})();
