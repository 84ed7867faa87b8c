// What somebody else's page, window or site can't do, and where nothing secret is ever written.

import assert from "node:assert/strict";
import { randomBytes, randomUUID } from "node:crypto";
import { describe } from "node:test";
import { Admin } from "./stage/admin.mjs";
import { until } from "./stage/deadline.mjs";
import { call, escapeHtml, send, Server } from "./stage/http.mjs";
import { scenes } from "./stage/scene.mjs";

const STRANGER_HOST = "127.0.0.5";
const CALLBACK_TYPE = "jiraConnectOauthCallback";
const MARKUP = "<img src=x onerror=alert(1)>";
const SCRIPT = "<script>alert(2)</script>";

const REFUSED_BY_ANCESTORS = /frame-ancestors/;
const REFUSED_BY_CORS = /blocked by CORS policy/;

describe("frames and windows", () => {
  const scene = scenes();

  scene(
    "another origin can frame neither the page nor the way back from GitLab",
    async (stage) => {
      const page = await stage.jira.frameUrl();
      const callback = `${stage.relay.baseUrl}/oauth_callbacks?code=a&state=b`;
      await withStranger(framing(page, callback), async (stranger) => {
        const view = await stage.visit(stranger.origin);
        await refusesFrames(view, 2);
      });
      // Not even Jira may frame the latter, nor the relay itself.
      const view = await stage.open();
      await view.frame.getByRole("heading", { name: "Connect your first GitLab instance" }).waitFor();
      await view.page.evaluate((url) => {
        const frame = document.createElement("iframe");
        frame.src = url;
        document.body.append(frame);
      }, callback);
      await refusesFrames(view, 1);
    },
    { except: [REFUSED_BY_ANCESTORS] },
  );

  scene("a perfect message of anybody but the window that was opened is not heard", async (stage) => {
    await stage.link(stage.plain);
    const admin = await Admin.open(stage);
    await admin.goToSignIn(stage.plain);
    const popup = await admin.openSignIn();
    const { state } = Object.fromEntries(new URL(popup.url()).searchParams);
    const message = { type: CALLBACK_TYPE, success: true, code: "of-somebody-else", state };
    const content = await admin.view.content();
    await content.evaluate((type) => {
      window.heard = [];
      window.addEventListener("message", ({ data, origin }) => data?.type === type && window.heard.push(origin));
    }, CALLBACK_TYPE);

    // Jira's own page; the instance's page in that very window; and a window of the page's own origin.
    await admin.view.page.evaluate((forged) => frames[0].postMessage(forged, "*"), message);
    await popup.evaluate((forged) => opener.postMessage(forged, "*"), message);
    const own = await admin.view.popup(() =>
      admin.view.page.evaluate((url) => void window.open(url), `${stage.relay.baseUrl}/subscriptions`),
    );
    await own.evaluate((forged) => opener.frames[0].postMessage(forged, "*"), message);
    const heard = await until("the messages", async () => {
      const origins = await content.evaluate(() => window.heard);
      return origins.length === 3 && origins;
    });
    assert.deepEqual(heard.sort(), [stage.jira.origin, stage.plain.origin, stage.relay.url].sort());

    await admin.see("Continue in the GitLab window.");
    assert.ok(!popup.isClosed());
    assert.ok(!stage.plain.calls.some(({ target }) => target === "/oauth/token"));
    await admin.finishSignIn(popup);
    const [exchange] = exchanges(stage.plain);
    assert.notEqual(exchange.code, message.code);
  });

  scene("a stranger's window is not gone on for, and hears of no code that comes back to another", async (stage) => {
    const stranger = new Server(async (_request, response) => send(response, { html: "<!DOCTYPE html><title>x</title>" }));
    const origin = await stranger.listen(STRANGER_HOST);
    try {
      const view = await stage.visit(origin);
      await view.page.evaluate((next) => {
        window.heard = [];
        window.addEventListener("message", ({ data, source }) => {
          window.heard.push(data.type);
          source.postMessage({ type: "jiraConnectOauthCallbackWaiting", next }, "*");
        });
      }, { url: `${stage.plain.url}/oauth/authorize`, state: "theirs" });
      const callback = `${stage.relay.baseUrl}/oauth_callbacks`;
      const first = await view.popup(() => view.page.evaluate((url) => void window.open(url), callback));
      const lost = { name: "This window lost its connection to the page" };
      await first.getByRole("heading", lost).waitFor();
      assert.equal(await first.getByRole("link").count(), 0);
      const second = await view.page.context().newPage();
      await second.goto(`${callback}?code=secret&state=theirs`);
      await second.getByRole("heading", lost).waitFor();
      assert.deepEqual(await view.page.evaluate(() => window.heard), ["jiraConnectOauthCallbackHello"]);
    } finally {
      await stranger.down();
    }
  });
});

describe("what others write", () => {
  const scene = scenes();

  scene("names, descriptions and messages with markup are shown as the text that they are", async (stage) => {
    stage.plain.user = { ...stage.plain.user, name: `Mona ${MARKUP}`, username: SCRIPT };
    stage.plain.refusedGroups = { markup: [422, `Refused ${MARKUP} ${SCRIPT}`] };
    await stage.link(stage.plain);
    const admin = await Admin.open(stage);
    const dialogs = [];
    admin.view.page.on("dialog", (dialog) => {
      dialogs.push(dialog.message());
      dialog.dismiss();
    });
    await admin.goToSignIn(stage.plain);
    stage.plain.instead = {
      path: /^\/oauth\/token$/,
      answer: { status: 400, json: { error: "x", error_description: `Denied ${MARKUP}` } },
    };
    const first = await admin.openSignIn();
    await first.getByRole("button", { name: "Authorize" }).click();
    await admin.see(`Denied ${MARKUP}`);
    await onlyText(admin);
    stage.plain.instead = null;
    await admin.finishSignIn(await admin.openSignIn());
    await admin.see(`Signed in as Mona ${MARKUP} (@${SCRIPT})`);
    await admin.see(SCRIPT);
    await admin.select(MARKUP);
    await admin.button("Link 1 group").click();
    await admin.see(`Refused ${MARKUP} ${SCRIPT}`);
    await onlyText(admin);

    stage.plain.refusedGroups = {};
    await admin.button("Link 1 group").click();
    await admin.see("1 group linked.");
    await admin.button("Back to linked groups").click();
    await admin.see(MARKUP, SCRIPT);
    await admin.select(MARKUP);
    await admin.button("Unlink 1 group").click();
    await admin.seeIn(admin.dialog, MARKUP);
    await onlyText(admin);
    await admin.view.look("markup");
    assert.deepEqual(dialogs, []);
  });

  scene("an address with markup is refused as text", async (stage) => {
    const admin = await Admin.open(stage);
    await admin.check(`https://gitlab.example.com/${MARKUP}`);
    await admin.dialog.getByRole("alert").waitFor();
    await onlyText(admin);
  });
});

describe("secrets", () => {
  const scene = scenes();

  scene("are in no address, log, storage, cookie, or document", async (stage) => {
    await stage.link(stage.plain, stage.below);
    const admin = await Admin.open(stage);
    const addresses = new Set();
    admin.view.page.context().on("page", (popup) => popup.on("framenavigated", (frame) => addresses.add(frame.url())));
    for (const gitlab of stage.gitlabs) {
      await admin.signIn(gitlab);
      await admin.choose("Fleet");
      await admin.button("Link 1 group").click();
      await admin.see("1 group linked.");
      await admin.button("Back to linked groups").click();
      await admin.button("Back to instances").click();
      await admin.seeIn(admin.card(gitlab), "1 group linked");
    }

    const codes = stage.gitlabs.flatMap(exchanges).map(({ code }) => code);
    const verifiers = stage.gitlabs.flatMap(exchanges).map(({ code_verifier }) => code_verifier);
    const contextTokens = stage.gitlabs.flatMap(linkings).map(({ jwt }) => jwt);
    for (const list of [codes, verifiers, contextTokens]) assert.ok(list.length >= 2 && list.every(Boolean));
    const secrets = [...stage.secrets, ...verifiers, ...contextTokens];

    const { requests, page } = admin.view;
    const frameUrls = requests.filter(({ url }) => url.includes("/subscriptions?xdm_e="));
    const others = requests.filter((request) => !frameUrls.includes(request)).map(({ url }) => url);
    const calls = stage.gitlabs.flatMap((gitlab) => gitlab.calls);
    const content = await admin.view.content();
    const places = {
      "an address that was asked for": others.join("\n"),
      "an address of a window": [...addresses].join("\n"),
      "the address of a frame": page.frames().map((frame) => frame.url()).join("\n"),
      "what GitLab logs": calls.map(({ target, headers }) => `${target} ${headers.referer}`).join("\n"),
      "the relay's log": stage.relay.log,
      "the page": await content.evaluate(() => document.documentElement.outerHTML),
      "Jira's page": await withoutFrameUrl(page),
      "the page's window": await content.evaluate(() => [name, document.cookie, JSON.stringify(history.state)].join()),
    };
    for (const [place, text] of Object.entries(places)) {
      for (const secret of secrets) assert.ok(!text.includes(secret), `${secret} is in ${place}`);
    }
    // The code is in the address of the way back, where GitLab puts it, and goes from there.
    for (const code of codes) {
      assert.equal(others.filter((url) => url.includes(code)).length, 1);
      assert.ok(others.find((url) => url.includes(code)).startsWith(`${stage.relay.baseUrl}/oauth_callbacks?`));
      assert.ok(!stage.relay.log.includes(code), "the code is in the relay's log");
      assert.ok(!places["the page"].includes(code), "the code is in the page");
    }
    assert.deepEqual(await admin.view.stored(), []);
  });

  scene("a browser that keeps nothing for frames of another site is enough", async (stage) => {
    await stage.link(stage.plain);
    const admin = await Admin.open(stage);
    const content = await admin.view.content();
    const refused = await content.evaluate(() => {
      const nameOf = (use) => {
        try {
          use();
        } catch (error) {
          return error.name;
        }
      };
      // Not even a cookie that says that it is meant for frames.
      document.cookie = "kept=1; SameSite=None; Secure";
      return [nameOf(() => localStorage), nameOf(() => sessionStorage), document.cookie];
    });
    assert.deepEqual(refused, ["SecurityError", "SecurityError", ""]);
    await admin.signIn(stage.plain);
    await admin.choose("Fleet");
    await admin.button("Link 1 group").click();
    await admin.see("1 group linked.");
    assert.deepEqual(await admin.view.stored(), []);
  });

  scene("the code leaves the address of the window that GitLab sends it to, and its history", async (stage) => {
    const view = await stage.visit(`${stage.relay.baseUrl}/subscriptions`);
    await view.page.goto(`${stage.relay.baseUrl}/oauth_callbacks?code=the-code&state=the-state`);
    await view.page.getByRole("heading", { name: "This window lost its connection to the page" }).waitFor();
    assert.equal(view.page.url(), `${stage.relay.baseUrl}/oauth_callbacks`);
    await view.page.goBack();
    await view.page.goForward();
    assert.equal(view.page.url(), `${stage.relay.baseUrl}/oauth_callbacks`);
    const html = await view.page.content();
    assert.ok(!html.includes("the-code") && !html.includes("the-state"));
    assert.ok(!stage.relay.log.includes("the-code"));
  });
});

describe("the page's policy", () => {
  const scene = scenes();

  scene(
    "runs nothing that is injected, and talks to nobody but the linked instances",
    async (stage) => {
      await stage.link(stage.plain);
      const admin = await Admin.open(stage);
      await admin.seeIn(admin.card(stage.plain), "Connected");
      const content = await admin.view.content();
      await content.evaluate(() => {
        const script = document.createElement("script");
        script.textContent = "window.injected = 'script'";
        const image = document.createElement("img");
        image.setAttribute("onerror", "window.injected = 'attribute'");
        image.src = "data:,";
        const style = document.createElement("style");
        style.textContent = "body { display: none }";
        const strange = document.createElement("script");
        strange.src = "data:text/javascript,window.injected='data'";
        document.body.append(script, image, style, strange);
      });
      // Chromium lets the debugger evaluate text; what runs later is the page's own.
      const evaluated = await content.evaluate(
        () =>
          new Promise((resolve) => {
            setTimeout(() => {
              try {
                resolve(new Function("return 'evaluated'")());
              } catch (error) {
                resolve(error.name);
              }
            });
          }),
      );
      assert.equal(evaluated, "EvalError");
      await until("the violations", () => /script-src-elem blocked data/.test(admin.view.problems().join("\n")));
      assert.equal(await content.evaluate(() => window.injected), undefined);
      assert.notEqual(await content.evaluate(() => getComputedStyle(document.body).display), "none");

      assert.equal(await fetched(content, `${stage.plain.url}/api/v4/user`), 401);
      assert.equal(await fetched(content, `${stage.below.url}/api/v4/user`), "TypeError");
      assert.equal(await fetched(content, `${stage.jira.origin}/token`), "TypeError");
      assert.equal(stage.below.calls.length, 0);
      const refused = () => admin.view.problems().filter((text) => text.startsWith("connect-src blocked"));
      await until("both to be refused by the policy", () => refused().length === 2);
    },
    { except: [/^(script-src|style-src|connect-src)\S* blocked/, /^console: .*Content Security Policy/] },
  );

  scene("allows nothing inline, no evaluation, and no frame but Jira's", async (stage) => {
    await stage.link(stage.plain);
    const pages = [
      await call(await stage.jira.frameUrl()),
      await call(`${stage.relay.baseUrl}/subscriptions`),
      await call(`${stage.relay.baseUrl}/oauth_callbacks?code=a&state=b`),
    ];
    for (const { headers, text } of pages) {
      const policy = headers["content-security-policy"];
      assert.match(policy, /^default-src 'none'; /);
      assert.ok(!/unsafe|\*(?!\.(atlassian\.net|jira\.com))|nonce/.test(policy), policy);
      assert.match(policy, /base-uri 'none'; form-action 'none'/);
      assert.equal(headers["referrer-policy"], "no-referrer");
      assert.equal(headers["x-content-type-options"], "nosniff");
      assert.equal(headers["set-cookie"], undefined);
      assert.ok(!/<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=/.test(text), text);
    }
    const [page, , callback] = pages.map(({ headers }) => headers["content-security-policy"]);
    const ancestors = /frame-ancestors ([^;]*)/.exec(page)[1].split(" ");
    const jira = ["https://*.atlassian.net", "https://*.jira.com", stage.jira.origin];
    assert.deepEqual([...new Set(ancestors)].sort(), jira.sort());
    assert.match(callback, /frame-ancestors 'none'/);
    assert.equal(/connect-src ([^;]*)/.exec(page)[1], `'self' ${stage.plain.origin}`);
  });
});

describe("the page's API", () => {
  const scene = scenes();

  const calls = ({ id }) => [
    ["GET", "links"],
    ["POST", "links", { instance_url: "https://gitlab.example.com" }],
    ["POST", "links/check", { instance_url: "https://gitlab.example.com", check: "address" }],
    ["GET", `links/${id}`],
    ["DELETE", `links/${id}`],
    ["DELETE", `links/${id}?purge=true`],
    ["POST", `links/${id}/look`],
    ["POST", `links/${id}/resend`],
    ["GET", `links/${id}/groups`],
    ["DELETE", `links/${id}/groups/1`],
    ["POST", `links/${id}/sign_in`],
    ["POST", `links/${id}/context_token`],
  ];

  const bare = ({ headers }) => {
    assert.equal(headers["set-cookie"], undefined);
    for (const name of Object.keys(headers)) assert.ok(!name.startsWith("access-control-"), name);
    assert.equal(headers["cache-control"], "no-store");
  };

  scene("does nothing without a token, with another's, or with one for something else", async (stage) => {
    const [link] = await stage.link(stage.plain);
    const before = JSON.stringify((await stage.api("GET", `links/${link.id}`)).body);
    const good = await stage.jira.contextToken();
    const forged = `${good.split(".").slice(0, 2).join(".")}.${randomBytes(32).toString("base64url")}`;
    const frameToken = new URL(await stage.jira.frameUrl()).searchParams.get("jwt");
    for (const [method, path, body] of calls(link)) {
      for (const token of [null, forged, frameToken]) {
        const answer = await stage.api(method, path, { body, token });
        assert.deepEqual([answer.status, answer.body.error.code.split("_")[0]], [401, "token"], `${method} ${path}`);
        bare(answer);
      }
    }
    assert.equal(JSON.stringify((await stage.api("GET", `links/${link.id}`)).body), before);
    assert.equal((await stage.relay.admin("GET", "links")).body.length, 1);
  });

  scene("lets somebody who is no admin read, and change nothing", async (stage) => {
    const [link] = await stage.link(stage.plain);
    const { status, body } = await stage.api("GET", "links", { account: "member" });
    assert.deepEqual([status, body.may_change, body.reason.code], [200, false, "not_jira_admin"]);
    for (const [method, path, wish] of calls(link).filter(([method]) => method !== "GET")) {
      const answer = await stage.api(method, path, { body: wish, account: "member" });
      assert.deepEqual([answer.status, answer.body.error.code], [403, "not_jira_admin"], `${method} ${path}`);
      bare(answer);
    }
    const nobody = await stage.api("POST", `links/${link.id}/context_token`, { account: "" });
    assert.equal(nobody.status, 403);
  });

  scene("shows one site nothing of another's, and changes nothing there", async (stage) => {
    const [link] = await stage.link(stage.plain);
    const clientKey = randomUUID();
    const installed = await stage.jira.install({ clientKey, sharedSecret: randomBytes(32).toString("hex") });
    assert.ok([200, 204].includes(installed.status), installed.body);
    const { body } = await stage.api("GET", "links", { clientKey });
    assert.deepEqual([body.may_change, body.links], [true, []]);
    for (const [method, path] of calls(link).filter(([, path]) => path.includes(link.id))) {
      const answer = await stage.api(method, path, { clientKey });
      assert.deepEqual([answer.status, answer.body.error.code], [404, "link_unknown"], `${method} ${path}`);
      bare(answer);
    }
    const { body: left } = await stage.api("GET", `links/${link.id}`);
    assert.deepEqual([left.state, left.attempts, left.created_at], [link.state, link.attempts, link.created_at]);
    // One site's key under another site's name proves nothing.
    const crossed = await stage.jira.contextToken({ claims: { iss: clientKey, sub: "admin" } });
    assert.equal((await stage.api("GET", `links/${link.id}`, { token: crossed })).status, 404);
  });

  scene(
    "is not for another origin's page, even with a token",
    async (stage) => {
      const [link] = await stage.link(stage.plain);
      const token = await stage.jira.contextToken();
      await withStranger(framing(), async (stranger) => {
        const { page } = await stage.visit(stranger.origin);
        const ask = (method, path, headers) => fetched(page, `${stage.relay.baseUrl}/${path}`, { method, headers });
        for (const [method, path] of calls(link)) {
          assert.equal(await ask(method, path, { Authorization: `JWT ${token}` }), "TypeError", `${method} ${path}`);
        }
        // Without the header there is no preflight: it arrives, and is refused.
        assert.equal(await ask("POST", "links", { "Content-Type": "text/plain" }), "TypeError");

        for (const [method, path] of calls(link)) {
          const headers = {
            Origin: stranger.origin,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": "authorization",
          };
          bare(await call(`${stage.relay.baseUrl}/${path}`, { method: "OPTIONS", headers }));
        }
        bare(await stage.api("GET", "links", { headers: { Origin: stranger.origin } }));
      });
      const { body } = await stage.api("GET", "links");
      assert.deepEqual(body.links.map(({ state }) => state), ["connected"]);
    },
    { except: [REFUSED_BY_CORS] },
  );
});

// Somebody else's server, for as long as `act` takes.
async function withStranger(handle, act) {
  const stranger = new Server(handle);
  await stranger.listen(STRANGER_HOST);
  try {
    await act(stranger);
  } finally {
    await stranger.down();
  }
}

function framing(...urls) {
  const frames = urls.map((url) => `<iframe src="${escapeHtml(url)}"></iframe>`).join("");
  return async (_, response) => send(response, { html: `<!DOCTYPE html><title>stranger</title>${frames}` });
}

// The status, or the name of the error if the page may not know.
async function fetched(page, url, options) {
  const ask = ([target, how]) => fetch(target, how).then(({ status }) => status, ({ name }) => name);
  return page.evaluate(ask, [url, options]);
}

// Chromium shows an error page of its own in their place, and says so for each.
async function refusesFrames(view, count) {
  const refused = () => view.problems().filter((text) => REFUSED_BY_ANCESTORS.test(text)).length;
  await until("the frames to be refused", () => refused() >= count);
  await until("Chromium's own page in their place", async () => {
    // One that is being replaced can't be asked.
    const protocol = (frame) => frame.evaluate(() => location.protocol).catch(() => null);
    const shown = await Promise.all(view.page.frames().map(protocol));
    return shown.filter((one) => one === "chrome-error:").length === count;
  });
}

// No element came of what somebody wrote.
async function onlyText(admin) {
  const content = await admin.view.content();
  const made = await content.evaluate(() => document.querySelectorAll("img, #app script, [onerror]").length);
  assert.equal(made, 0);
}

function exchanges({ calls }) {
  const asked = ({ method, target }) => method === "POST" && target.endsWith("/oauth/token");
  return calls.filter(asked).map(({ body }) => JSON.parse(body));
}

function linkings({ calls }) {
  const asked = ({ method, target }) => method === "POST" && target.endsWith("/jira_connect/subscriptions");
  return calls.filter(asked).map(({ body }) => JSON.parse(body));
}

// Jira's page holds the frame's address, with Jira's own token.
async function withoutFrameUrl(page) {
  return page.evaluate(() => {
    const copy = document.documentElement.cloneNode(true);
    copy.querySelector("iframe").removeAttribute("src");
    return copy.outerHTML;
  });
}
