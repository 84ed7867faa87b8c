// A simulated Atlassian cloud, for those who come after Connect: sites, the API
// gateway with its token endpoint, and the Forge platform. Tokens are signed by
// npm jose. README.md lists the commands and the endpoints.

import { say, serveCommands } from "./commands.mjs";
import { Forge } from "./atlassian/forge.mjs";
import { Gateway } from "./atlassian/gateway.mjs";
import { Grants } from "./atlassian/grants.mjs";
import { KeyServer } from "./atlassian/key_server.mjs";
import { Keys, verify } from "./atlassian/keys.mjs";
import { OAuth } from "./atlassian/oauth.mjs";
import { doorCommands } from "./jira_site/door.mjs";
import { Site } from "./jira_site/site.mjs";

const LAST_WORDS_MS = 1000;

class Cloud {
  #sites = new Map();

  grants = new Grants();
  oauth = new OAuth(this.grants);
  gateway = new Gateway({ sites: this.#sites, grants: this.grants, oauth: this.oauth });

  async start() {
    this.keys = await Keys.create();
    this.keyServer = new KeyServer(this.keys);
    this.forge = new Forge({
      grants: this.grants,
      keys: this.keys,
      tokenKeys: await Keys.create(),
      apiOrigin: () => this.gateway.door.origin,
    });
    await this.gateway.door.listen();
    await this.keyServer.door.listen();
  }

  async addSite({ name, cloud_id: cloudId, ...settings }) {
    if (this.#sites.has(name) || !/^[a-z0-9-]+$/.test(name) || ["api", "jwks"].includes(name)) {
      throw new Error(`bad or known site: ${JSON.stringify(name)}`);
    }
    const site = new Site(cloudId);
    const url = await site.door.listen();
    if (settings.app_key) site.configure(settings);
    this.#sites.set(name, site);
    return { url, cloud_id: site.cloudId };
  }

  site(name) {
    const site = this.#sites.get(name);
    if (!site) throw new Error(`unknown site: ${JSON.stringify(name)}`);
    return site;
  }

  door(name = "api") {
    if (name === "api") return this.gateway.door;
    if (name === "jwks") return this.keyServer.door;
    return this.site(name).door;
  }

  get violations() {
    const doors = ["api", "jwks", ...this.#sites.keys()];
    return doors.flatMap((name) => this.door(name).violations.map((violation) => `${name}: ${violation}`));
  }
}

const ofDoor = Object.entries(doorCommands).map(([name, act]) => [
  name,
  (cloud, command) => act(cloud.door(command.at), command),
]);

const commands = {
  ...Object.fromEntries(ofDoor),
  site: (cloud, command) => cloud.addSite(command),
  configure: (cloud, command) => cloud.site(command.site).configure(command),
  rename: (cloud, { site, base_url: baseUrl }) => {
    cloud.site(site).baseUrl = baseUrl;
  },
  state: (cloud, { site, provider }) => ({
    ...cloud.site(site).store(provider).snapshot(),
    providers: cloud.site(site).providers,
  }),
  violations: (cloud) => ({ violations: cloud.violations }),
  tokens: (cloud) => ({ tokens: cloud.grants.tokens }),

  credential: (cloud, command) => cloud.oauth.credential(cloud.site(command.site), command),
  delete_credential: (cloud, { client_id: clientId }) => cloud.oauth.deleteCredential(clientId),
  oauth_lifetime: (cloud, { secs }) => {
    cloud.oauth.lifetimeSecs = secs;
  },
  oauth_expire: (cloud, { client_id: clientId }) => cloud.oauth.expire(clientId),
  oauth_stats: (cloud) => cloud.oauth.stats,

  app: (cloud, command) => cloud.forge.app(command),
  install: (cloud, { site, ...command }) => cloud.forge.install(cloud.site(site), command),
  upgrade: (cloud, command) => cloud.forge.upgrade(command),
  scheduled: (cloud, command) => cloud.forge.scheduled(command),
  uninstall: (cloud, command) => cloud.forge.uninstall(command),
  invoke: (cloud, command) => cloud.forge.invoke(command),
  fit: (cloud, command) => cloud.forge.token(command),
  verify: (cloud, { token, audience }) => verify(token, cloud.keyServer.url, audience),
  system_token: (cloud, command) => cloud.forge.systemToken(command),
  system_tokens: (cloud, { lifetime_secs: lifetimeSecs, opaque }) => {
    const known = cloud.forge.systemTokens;
    cloud.forge.systemTokens = { lifetimeSecs: lifetimeSecs ?? known.lifetimeSecs, opaque: opaque ?? known.opaque };
  },
  expire: (cloud, { installation }) => cloud.forge.expire(installation),
  retry_delay: (cloud, { ms }) => {
    cloud.forge.retryDelayMs = ms;
  },
  installations: (cloud) => cloud.forge.state,
  rotate_key: async (cloud, command) => ({ kid: await cloud.keys.rotate(command) }),
  pad_keys: (cloud, { count }) => cloud.keys.pad(count),
  cache_control: (cloud, { value }) => {
    cloud.keyServer.cacheControl = value;
  },
};

const cloud = new Cloud();
await cloud.start();
say({ ready: true, api_url: cloud.gateway.door.origin, jwks_url: cloud.keyServer.url, kid: cloud.keys.kid });
serveCommands(cloud, commands, LAST_WORDS_MS);
