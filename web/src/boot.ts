// What the relay wrote into the document: where its API is, and what this document's policy allows.

export interface Boot {
  base: string;
  /** Origins of instances that this document's connect-src lets the page call. */
  origins: string[];
  proxyUrl: string;
  redirectUri: string;
  /** Outside Jira only: proves that a call comes from this document. */
  pageToken?: string;
}

export function readBoot(root: HTMLElement): Boot {
  return JSON.parse(root.dataset.boot ?? "") as Boot;
}
