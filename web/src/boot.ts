// What the relay says first: where its API is, and what holds for this installation.

/** What an upstream can't do. */
export type Lack = "workspace_search" | "repository_search" | "create_branch";

export interface Boot {
  base: string;
  /** Origins of instances that this document's connect-src lets the page call. */
  origins: string[];
  proxyUrl: string;
  redirectUri: string;
  /** Outside Jira only: proves that a call comes from this document. */
  pageToken?: string;
  upstream: "connect" | "forge" | "oauth";
  lacks: Lack[];
}

export function readBoot(root: HTMLElement): Boot {
  return JSON.parse(root.dataset.boot ?? "") as Boot;
}
