// Jira's side of Forge's frame: takes what the bridge asks for. Browser code, no module.

(() => {
  const { account, origin: cdn, navigation } = document.currentScript.dataset;
  const frame = document.querySelector("iframe");
  let themed = false;

  const post = (message) => frame.contentWindow.postMessage(message, cdn);
  const postTheme = () => post({ type: "theme", mode: document.documentElement.dataset.colorMode });

  async function invoke(call) {
    const answer = await fetch(`/invoke?${new URLSearchParams({ account })}`, {
      method: "POST",
      body: JSON.stringify(call),
    });
    const { error, value } = await answer.json();
    if (error) throw new Error(error);
    return value;
  }

  const commands = {
    invoke,
    getContext: () => ({ accountId: account, locale: "en_GB", moduleKey: "gitlab" }),
    enableTheming() {
      themed = true;
      postTheme();
    },
    // Jira asks its user first, who may decline. The new window knows nothing of this one.
    navigate({ url }) {
      if (navigation === "declined") throw new Error("navigation was declined");
      window.open(url, "_blank", "noopener");
    },
    reload: () => location.reload(),
  };

  window.addEventListener("message", async ({ source, origin, data }) => {
    if (source !== frame.contentWindow || origin !== cdn || data.type !== "call") return;
    try {
      if (!(data.command in commands)) throw new Error(`no such command: ${data.command}`);
      post({ type: "answer", call: data.call, value: await commands[data.command](data.data) });
    } catch (error) {
      post({ type: "answer", call: data.call, error: error.message });
    }
  });

  new MutationObserver(() => themed && postTheme()).observe(document.documentElement, {
    attributeFilter: ["data-color-mode"],
  });
})();
