// The REST side of one simulated Jira Cloud site: takes development data, keeps
// it as Jira does, and fails on request. Tokens are judged by Atlassian's own
// library. README.md lists the commands and the endpoints.

import { say, serveCommands } from "./commands.mjs";
import { doorCommands } from "./jira_site/door.mjs";
import { Site } from "./jira_site/site.mjs";

const LAST_WORDS_MS = 1000;

const ofDoor = Object.entries(doorCommands).map(([name, act]) => [name, (site, command) => act(site.door, command)]);

const commands = {
  ...Object.fromEntries(ofDoor),
  configure: (site, command) => site.configure(command),
  state: (site) => ({ ...site.store().snapshot(), violations: site.door.violations }),
};

const site = new Site();
say({ ready: true, url: await site.door.listen(), cloud_id: site.cloudId });
serveCommands(site, commands, LAST_WORDS_MS);
