// Every text that the page says, for translators. What differs by number or name is a function.

import type { Check } from "./api.ts";
import type { Lack } from "./boot.ts";
import type { HostFailure } from "./host.ts";
import type { LocalNetworkAccess } from "./local_network.ts";
import type { SignInFailure } from "./sign_in.ts";

/** The language of these texts, for dates and numbers beside them. */
export const LANGUAGE = "en";

interface Explanation {
  message: string;
  hint: string | null;
}

const number = (n: number) => n.toLocaleString(LANGUAGE);
const groups = (n: number) => (n === 1 ? "1 group" : `${number(n)} groups`);

export const texts = {
  appName: "GitLab for Jira",
  loading: "Loading…",
  close: "Close",
  cancel: "Cancel",
  tryAgain: "Try again",
  reloadPage: "Reload page",
  copy: "Copy",
  copyOf: (label: string) => `Copy ${label}`,
  copied: "Copied",
  copiedOf: (label: string) => `Copied ${label}`,
  requestId: "Request ID",
  listSeparator: ", ",
  justNow: "just now",
  verySoon: "in less than a minute",

  // The page as a whole

  connecting: "Connecting to Jira…",
  hostFailures: (scriptHost: string): Record<HostFailure, Explanation> => ({
    script_missing: {
      message: "Jira did not answer",
      hint: `The script that connects this page to Jira, from ${scriptHost}, did not load. Check your connection, and whether an ad blocker, a browser extension or your company's network blocks that address. Then try again.`,
    },
    not_framed: {
      message: "This page works only inside Jira",
      hint: "In Jira, choose Apps > Manage your apps > GitLab for Jira > Get started. If you are there already, reload the page.",
    },
    token_missing: {
      message: "Jira did not confirm who you are",
      hint: "Your session in Jira has probably ended. Reload the page and log in to Jira again.",
    },
  }),
  sessionExpiredTitle: "Your session has expired",
  sessionExpired:
    "Nothing that was already saved is lost. Reload the page to continue; Jira may ask you to log in.",
  sessionExpiredOutside:
    "Nothing that was already saved is lost. To continue, run jira-connect-proxy page for this Jira site again and open the address that it prints.",
  operator: "Outside Jira: you act as an operator of the relay.",
  logOut: "Log out",
  loggedOutTitle: "You are logged out",
  loggedOut: "You can close this window. The command jira-connect-proxy page opens a new one.",
  offlineTitle: "You are offline",
  offlineBanner:
    "What you see may be out of date. The page tries again by itself when you are online.",
  staleTitle: "The list could not be updated",
  keepsTrying: "The page keeps trying.",
  pageFailed: (detail: string): Explanation => ({
    message: "Something on this page went wrong",
    hint: `Reload the page. If it happens again, tell the people who run the relay: ${detail}`,
  }),
  notUnderstood: (status: number): Explanation => ({
    message: `The relay's answer was not understood (HTTP ${status})`,
    hint: "Something between your browser and the relay, for example a load balancer, answered in its place. Try again in a minute; then tell the people who run the relay.",
  }),
  relayTimedOut: {
    message: "The relay did not answer in time",
    hint: "Try again. If it happens again, tell the people who run the relay.",
  },
  relayUnreachable: {
    message: "The relay cannot be reached",
    hint: "The server behind this page did not answer. If it goes on, tell the people who run the relay.",
  },
  offline: {
    message: "You are offline",
    hint: "Check your connection, then try again.",
  },
  // Codes of the relay that a Jira admin can be told more about than the relay's own words do.
  relayErrors: {
    not_jira_admin: {
      message: "Only Jira administrators can change this",
      hint: "To change the instances or their groups, ask a Jira administrator of this site.",
    },
    admins_unknown: {
      message: "Nothing can be changed in Jira any more",
      hint: "The relay reaches this Jira site without an app now, so it can't ask Jira who its administrators are. The people who run the relay can open this page outside Jira with the command jira-connect-proxy page.",
    },
    instance_not_allowed: {
      message: "The relay is not allowed to connect to this address",
      hint: "The people who run the relay have limited which GitLab instances may be linked. Ask them to allow this one.",
    },
    instance_not_https: {
      message: "The address must begin with https://",
      hint: "Secrets would travel unprotected. The people who run the relay can allow it all the same.",
    },
    instance_address_not_public: {
      message: "This address is not in the public Internet",
      hint: "If the instance lives in a private network, ask the people who run the relay to allow that.",
    },
    instance_is_relay: {
      message: "This is the address of the relay itself",
      hint: "Type the address under which people open GitLab.",
    },
    link_exists: {
      message: "This instance is connected to this Jira site already",
      hint: "Look for it in the list.",
    },
    link_not_alone: {
      message: "Another instance is connected directly to Jira, so no other can be",
      hint: "Remove that one first, or ask the people who run the relay to connect it through the relay.",
    },
    link_being_purged: {
      message: "The development information of this instance is just being deleted from Jira",
      hint: "Try again when that is done.",
    },
    link_being_removed: {
      message: "This instance is just being removed",
      hint: "Undo the removal, or wait until it is gone.",
    },
    too_late_to_undo: {
      message: "It is too late to undo this",
      hint: "The instance has been told that it is no longer connected. To connect it again, add it when its removal is over, and link its groups anew.",
    },
    link_unknown: {
      message: "This instance is not connected to this Jira site any more",
      hint: "It was removed meanwhile. To connect it again, add it and link its groups anew.",
    },
    link_unmarked: {
      message: "The development information of this instance can't be deleted by itself",
      hint: "Remove the instance without deleting it. Jira deletes all of it when the app is uninstalled.",
    },
    too_many_links: {
      message: "This Jira site has as many instances as it may have",
      hint: "Remove one that nobody needs.",
    },
    installation_uninstalled: {
      message: "This Jira site is not connected to the relay any more",
      hint: "Install the app again or, if the site was reached with OAuth credentials, have the people who run the relay add them again. Its instances come back.",
    },
    store_full: {
      message: "The relay has no room for another instance",
      hint: "Tell the people who run the relay.",
    },
  } as Record<string, Explanation | undefined>,
  readOnlyTitle: "You can look, but not change anything",
  mayChange: "You can make changes.",

  // Instances

  instancesIntro: (site: string) =>
    `GitLab instances that show their development information in ${site}.`,
  ofSite: (site: string) => `Jira site ${site}`,
  instancesHeading: "Instances",
  addInstance: "Add GitLab instance",
  states: {
    pending: "Connecting",
    connected: "Connected",
    failing: "Needs attention",
    removing: "Removing",
    checking: "Checking",
    unknown: "Not known",
  },
  gitlabVersion: (version: string) => `GitLab ${version}`,
  gitlabVersionUnknown: "GitLab version not known yet",
  lastActivity: (ago: string) => `Last activity ${ago}`,
  noActivity: "No activity yet",
  groupsLoading: "Counting groups…",
  groupsLinked: (n: number) => (n === 0 ? "No groups linked" : `${groups(n)} linked`),
  groupsUnknown: "Groups unknown",
  linkGroups: "Link groups",
  linkGroupsOf: (address: string) => `Link groups of ${address}`,
  manageGroups: "Manage groups",
  manageGroupsOf: (address: string) => `Manage groups of ${address}`,
  viewGroups: "View groups",
  viewGroupsOf: (address: string) => `View groups of ${address}`,
  remove: "Remove",
  removeOf: (address: string) => `Remove ${address}`,
  tryAgainOf: (address: string) => `Try again to connect ${address}`,
  undo: "Undo",
  undoOf: (address: string) => `Undo the removal of ${address}`,
  connectingTitle: "Waiting for the instance",
  connectingText:
    "The relay has told the instance about this Jira site and waits until it accepts. This usually takes a few seconds.",
  nextAttempt: (when: string) => `Next attempt ${when}.`,
  attempts: (n: number) => (n === 1 ? "1 attempt so far." : `${number(n)} attempts so far.`),
  failedAt: (when: string) => `Last failure ${when}.`,
  failingUnknown: "The instance does not accept the connection",
  removingTitle: "Being removed",
  removingSoon: "The instance will be told in a few seconds. Until then you can undo this.",
  removingUnheard:
    "The instance has not heard of it yet. The relay tries until it has, and until then you can undo this.",
  removingTelling: "The instance is being told. The relay tries until it has heard.",
  removingTold: "The instance has been told.",
  removingPurge: {
    wanted: "Its development information will be deleted from Jira.",
    pending: "Its development information is being deleted from Jira.",
    done: "Its development information has been deleted from Jira.",
  },
  added: (address: string) => `${address} was added.`,
  /** `cause`: a sentence. */
  became: {
    pending: (address: string) => `${address} is being connected again.`,
    connected: (address: string) => `${address} is connected.`,
    failing: (address: string, cause: string) => `${address} has a problem: ${cause}`,
    removing: (address: string) => `${address} is being removed.`,
  },
  gone: (address: string) => `${address} has been removed.`,
  lostTitle: (address: string) => `${address} has been removed`,
  lostText: "That happened while you looked at its groups.",
  leavingTitle: (address: string) => `${address} is being removed`,
  leavingText:
    "Its groups are unlinked with it. In the list of instances this can still be undone.",
  leavingForGood: "Its groups are unlinked with it.",
  undone: (address: string) => `${address} stays.`,
  lookedAgain: (address: string, found: string) => `The relay looked at ${address} again: ${found}`,
  resent: (address: string, found: string) =>
    `The relay tried again to connect ${address}: ${found}`,
  foundWell: "All is well.",
  foundNothing: "There is no answer yet.",

  // First use, and what must be set up

  firstUseTitle: "Connect your first GitLab instance",
  firstUseText:
    "See branches, commits, merge requests, pipelines and deployments of your self-managed GitLab in Jira issues. Three steps:",
  stepSetUp: "Set up your GitLab instance",
  stepSetUpText: "A GitLab administrator does this once per instance.",
  stepAdd: "Add it here",
  stepAddText: "You type its address. The relay checks that everything is ready and connects it.",
  stepLink: "Link groups",
  stepLinkText:
    "You sign in to GitLab and choose the groups whose development information Jira shows.",
  setUpSummary: "What must be set up in GitLab first?",
  setUpProxyUrl:
    "In GitLab, as an administrator, go to Admin area > Settings > General > GitLab for Jira App and enter:",
  proxyUrlLabel: "Jira Connect Proxy URL",
  setUpOauth:
    "Go to Admin area > Applications and add an application that is neither trusted nor confidential, with the scope api and this address:",
  redirectUriLabel: "Redirect URI",
  setUpApplicationId:
    "Go back to GitLab for Jira App, enter the new application's ID as Jira Connect Application ID, and save.",

  // Adding

  addTitle: "Add GitLab instance",
  addUrlLabel: "Address of the GitLab instance",
  addUrlHint: "As you see it in your browser, for example https://gitlab.example.com",
  check: "Check",
  checkAgain: "Check again",
  checkAgainOf: (address: string) => `Check again: ${address}`,
  willLink: (url: string) => `We will link ${url}`,
  checklist: "Checks",
  checkNames: {
    address: "Address",
    reachable: "Reachable from the relay",
    gitlab: "A GitLab instance",
    proxy_url: "Jira Connect Proxy URL",
    public_key: "Public key (GitLab 15.7 or later)",
    oauth_application: "OAuth application",
  } satisfies Record<Check, string>,
  verdicts: {
    pending: "Checking…",
    waiting: "Not checked yet",
    skipped: "Not checked",
    ok: "Passed",
    warn: "Warning",
    fail: "Failed",
    unknown: "Could not be checked",
  },
  checksDone: (failed: number) =>
    failed === 0
      ? "All checks are done."
      : failed === 1
        ? "All checks are done. 1 needs attention."
        : `All checks are done. ${number(failed)} need attention.`,
  checksStopped:
    "The other checks were not made, because the relay must reach the instance for them.",
  addAnyway: "Add anyway",
  addFailedText:
    "You can add the instance now. It stays “Needs attention” until the failed checks are fixed.",
  addWarnedText: "You can add the instance now and see to this later.",
  addConfirm: "Add instance",
  urlMissing: "Enter the address of the GitLab instance.",

  // Removing

  removeTitle: (address: string) => `Remove ${address}?`,
  removeText: (site: string) =>
    `The instance will be told that it is no longer connected, its groups will be unlinked from ${site}, and it will send nothing more.`,
  removeKeeps: "Development information that Jira already shows stays, unless you delete it too.",
  removeKeepsAlways: "Development information that Jira already shows stays.",
  removeUndo: "You can undo this for ten seconds.",
  removePurge: "Also delete its development information from Jira",
  removeConfirm: "Remove instance",

  // Groups of an instance

  backToInstances: "Back to instances",
  backToGroups: "Back to linked groups",
  groupsTitle: (address: string) => `Groups of ${address}`,
  linkTitle: (address: string) => `Link groups of ${address}`,
  linkedGroups: "Linked groups",
  linkText:
    "Jira shows the development information of the groups that you link, and of their subgroups and projects.",
  groupsText:
    "Jira shows the development information of linked groups, and of their subgroups and projects.",
  noGroupsTitle: "No groups are linked yet",
  noGroupsText: "Link a group, and Jira shows the development information of its projects.",
  filterGroups: "Filter linked groups",
  filterFound: (n: number, total: number) => `${number(n)} of ${groups(total)}`,
  filterNone: "No linked group matches the filter.",
  linkedSince: (when: string) => `Linked ${when}`,
  selectAll: "Select all",
  selectedCount: (n: number) => `${groups(n)} selected`,
  clearSelection: "Clear selection",
  stop: "Stop",
  unselect: "Unselect",
  unselectOf: (name: string) => `Unselect ${name}`,
  unlink: (n: number) => (n === 0 ? "Unlink" : `Unlink ${groups(n)}`),
  unlinkTitle: (n: number) => `Unlink ${groups(n)}?`,
  unlinkText: (n: number) =>
    n === 1
      ? "GitLab stops sending development information of this group to Jira. What Jira already shows stays."
      : "GitLab stops sending development information of these groups to Jira. What Jira already shows stays.",
  andMore: (n: number) => `and ${number(n)} more`,
  unlinking: (done: number, total: number) => `Unlinking ${number(done)} of ${number(total)}…`,
  unlinkDone: (n: number) => `${groups(n)} unlinked.`,
  unlinkDoneInPart: (done: number, failed: number) =>
    `${groups(done)} unlinked, ${number(failed)} could not be unlinked.`,
  unlinkFailedTitle: (done: number, failed: number) =>
    done > 0
      ? "Some groups could not be unlinked"
      : failed === 1
        ? "The group could not be unlinked"
        : "The groups could not be unlinked",

  // What an upstream lacks

  lacksTitle: "Some things do not work with this app",
  lacks: {
    workspace_search:
      "Jira cannot list GitLab groups as workspaces: it offers that to older apps only.",
    repository_search:
      "Projects cannot be searched for and added in Jira's own pages. Link their groups here instead.",
    create_branch: "“Create branch” in Jira does not lead to GitLab. Create branches in GitLab.",
  } satisfies Record<Lack, string>,

  // Signing in to an instance

  needsReloadTitle: "Reload the page once",
  needsReload: (address: string) =>
    `${address} was added after this page was opened, so your browser does not let the page talk to it yet. Reload the page, then choose “Link groups” again.`,
  signInTitle: "Sign in to GitLab",
  signInText: (address: string) =>
    `A window of ${address} opens, where you sign in and allow access. You need at least the Maintainer role in the groups that you want to link.`,
  signInPrivacy:
    "Your GitLab access stays in this browser tab. The relay and Jira never see it, and it is forgotten when you leave this page.",
  signIn: "Sign in to GitLab",
  signInTwo: "Sign in with two windows",
  signInPreparing: "Asking the instance how to sign in…",
  signInWaiting: "Continue in the GitLab window.",
  signInFinishing: "Signing in…",
  pasteLabel: "Code",
  pasteHelp: "If the GitLab window shows a code at the end, copy it and paste it here.",
  pasteUse: "Use code",
  signedInAs: (name: string, username: string) => `Signed in as ${name} (@${username})`,
  signOut: "Sign out",
  signInFailures: {
    no_web_crypto: {
      message: "Your browser cannot sign in safely here",
      hint: "Signing in needs the browser's cryptography, which it offers only on https pages. The people who run the relay must serve it by https.",
    },
    popup_blocked: {
      message: "Your browser blocked the sign-in window",
      hint: "Allow pop-up windows for this page in your browser's address bar, then try again.",
    },
    popup_closed: {
      message: "The sign-in window was closed, or the instance cut it off from this page",
      hint: "If you closed it, try again and allow access in the window that opens. If it is still there, the instance isolates its windows (Cross-Origin-Opener-Policy): close it and choose “Sign in with two windows”.",
    },
    denied: {
      message: "Access was denied in GitLab",
      hint: "Groups can be linked only if you allow access. Try again and choose Authorize.",
    },
    state_mismatch: {
      message: "The answer did not belong to this sign-in",
      hint: "It was ignored for your safety. Close other sign-in windows and try again.",
    },
    failed: {
      message: "GitLab refused the sign-in",
      hint: "Try again. If it happens again, ask a GitLab administrator to check the OAuth application: not confidential, not trusted, scope api, and the redirect URI exactly as shown under “What must be set up in GitLab first?”.",
    },
  } satisfies Record<SignInFailure, Explanation>,
  gitlabSignedOut: "Your sign-in to GitLab has ended. Sign in again.",
  instanceUnreachable: "Your browser got no answer from the instance.",
  answerStatus: (status: number) => `GitLab answered with HTTP ${status}.`,
  notGitlab: {
    message: "What answered is not GitLab's API",
    hint: "Something between your browser and the instance, for example a log-in portal or a proxy, answered in its place. Open the instance in a new tab, log in where you are asked to, then try again. If it happens again, tell the people who run the instance.",
  },
  gitlabRefusal: (status: number, message: string) => {
    if (/JWT authentication failed/.test(message)) {
      return "The instance does not believe the relay. Go back to the instances, check this one again and do what it says there.";
    }
    if (/Cannot find namespace/.test(message)) {
      return "You need at least the Maintainer role in this group. If you have it, the group may have been moved or renamed: search for it again.";
    }
    if (/\bJira\b/.test(message)) {
      return "GitLab asks Jira, through the relay, whether you are an administrator of this Jira site. If you are, try again in a minute; then tell the people who run the relay.";
    }
    if (status === 429) {
      return "GitLab limits how often it may be asked. Wait a minute, then try again.";
    }
    return status >= 500
      ? "GitLab, or a proxy in front of it, has trouble. Try again in a minute; then tell the people who run the instance."
      : "Try again. If it happens again, tell a GitLab administrator what GitLab answered.";
  },

  // An instance that the browser does not reach

  unreachableTitle: (address: string) => `Your browser does not reach ${address}`,
  unreachableCauses: "The browser does not tell this page why. Possible causes, likely ones first:",
  causeLocalNetwork:
    "The instance is in a private network, and your browser guards private networks (Chrome and Edge 142 or later: Local Network Access).",
  causeDown: "The instance is down, or reachable only through a VPN that you are not connected to.",
  causeCertificate:
    "Your browser does not trust the instance's certificate. Open the instance in a new tab to see.",
  causeMixed: "The instance uses http while this page uses https; browsers block that.",
  causeCors:
    "A proxy or firewall in front of the instance removes the CORS headers of /api/ and /oauth/token that GitLab sends.",
  openInstance: "Open the instance in a new tab",
  /** `page`: the origin that asks, which in Forge is not the relay's. */
  localNetwork: (page: string): Record<LocalNetworkAccess, string> => ({
    granted:
      "Your browser allows this page to reach your local network, so look at the other causes.",
    denied: `Your browser denies this page access to your local network. Select the icon beside the address bar, allow “Local network access” for this page and reload. If you cannot, your company manages it: its browser administrator can add ${page} to the policy LocalNetworkAccessAllowedForUrls.`,
    prompt: `Your browser will ask whether this page may access your local network. Choose Allow. If no question appears, your browser's administrator can add ${page} to the policy LocalNetworkAccessAllowedForUrls.`,
    not_delegated: `Jira does not pass the permission for your local network on to this page, so you cannot allow it yourself. Your browser's administrator can enable the policy LocalNetworkAccessPermissionsPolicyDefaultEnabled (Chrome and Edge 146 or later), and add the address of your Jira site and ${page} to LocalNetworkAccessAllowedForUrls. Until then, another browser may work.`,
    unknown:
      "This browser does not say whether it guards your local network. If it asks whether this page may access it, choose Allow.",
  }),
  privateNetworkAllowed: "Your browser allows this page to reach your local network.",
  ifSigningInFails: (help: string) => `If signing in fails: ${help}`,
  privateNetworkTitle: "This instance is in a private network",
  privateNetworkText:
    "Your browser must be in that network too, for example through a VPN, and must let this page reach it.",

  // Choosing groups to link

  searchGroups: "Search groups",
  searchHint: "Groups in which you have at least the Maintainer role. Type at least 3 characters.",
  searchHintAdmin: "As a GitLab administrator you see all groups. Type at least 3 characters.",
  searchTooShort: "Type at least 3 characters to search. Until then the list stays as it was.",
  groupsLoadingList: "Loading groups…",
  groupsFound: (n: number | null) => (n === null ? "Many groups found." : `${groups(n)} found.`),
  noGroupsFound: "No group matches the search.",
  noGroupsAtAll: "There is no group in which you have at least the Maintainer role.",
  alreadyLinked: "Linked",
  maybeLinked: "Maybe linked",
  withPath: (name: string, path: string) => `${name} (${path})`,
  linkedUnknown: "Which groups are linked already is not known",
  pageOf: (page: number, pages: number | null) =>
    pages === null ? `Page ${number(page)}` : `Page ${number(page)} of ${number(pages)}`,
  pages: "Pages",
  previousPage: "Previous",
  nextPage: "Next",
  alsoSelected: (names: string) => `Also selected: ${names}`,
  linkCount: (n: number) => (n === 0 ? "Link groups" : `Link ${groups(n)}`),
  linking: (done: number, total: number) => `Linking ${number(done)} of ${number(total)}…`,
  linkDone: (n: number) =>
    n === 1
      ? "1 group linked. Jira will show its development information in a few minutes."
      : `${groups(n)} linked. Jira will show their development information in a few minutes.`,
  linkDoneInPart: (done: number, failed: number) =>
    `${groups(done)} linked, ${number(failed)} could not be linked.`,
  linkFailedTitle: (done: number, failed: number) =>
    done > 0
      ? "Some groups could not be linked"
      : failed === 1
        ? "The group could not be linked"
        : "The groups could not be linked",
  stillSelected: (n: number) =>
    n === 1
      ? "1 group is still selected, to be linked when you have signed in."
      : `${groups(n)} are still selected, to be linked when you have signed in.`,
  linkFailedText: (failed: number) =>
    failed === 1
      ? "It is still selected, so that you can try again."
      : "They are still selected, so that you can try again.",
  withDetail: (message: string, detail: string) => `${message}: ${detail}`,
};

// The OAuth callback page's, apart so that its script holds only these.
export const callbackTexts = {
  signedIn: "You are signed in",
  notSignedIn: "You are not signed in",
  closeWindow: "You can close this window and go back to the page.",
  almostSignedIn: "You are almost signed in",
  pasteCode:
    "Copy this code, go back to the page in Jira where you started, and paste it there. Give it to nobody.",
  copy: "Copy",
  copied: "Copied",
  noOpener: "This window lost its connection to the page",
  startAgain:
    "Close this window, go back to the page and sign in again. If it happens again, the GitLab instance or a proxy in front of it sends a Cross-Origin-Opener-Policy header, which cuts the connection: choose “Sign in with two windows” on the page. Its administrator can also remove that header from /oauth/authorize.",
  keepOpen: "Keep this window open",
  keepOpenText:
    "GitLab opens in another one. When you have allowed access there, this one closes by itself.",
  goOn: "Continue to GitLab",
};
