// What hosts the page: Jira's Connect frame, Forge, ... Each file in hosts/ has a function that finds its
// host; the entry point of a bundle chooses one.

import type { Boot } from "./boot.ts";

export interface Host {
  boot: Boot;
  /** Nobody around the page knows who looks at it; a session of its own does. */
  outside?: boolean;
  /**
   * One call to the relay, with what proves who looks at the page. `path` is below the relay's base path.
   * Fails with a HostError, or as fetch() does.
   */
  request(call: Call, signal: AbortSignal): Promise<Answer>;
  /** Whether this document's policy lets it call an instance. */
  mayCall(origin: string): boolean;
  /**
   * Opens a window that the page hears nothing of, where it may be kept from opening one that it does.
   * Fails if the user does not want it.
   */
  openElsewhere: ((url: string) => Promise<void>) | null;
  /** Loads the page anew, with new proofs and a new policy. */
  reload(): void;
}

export interface Call {
  method: string;
  path: string;
  body?: object | undefined;
}

export interface Answer {
  status: number;
  text: string;
}

/** Finds the host. `again`: it was tried before, and somebody asks to try once more. */
export type FindHost = (again: boolean) => Promise<Host>;

export type HostFailure = "script_missing" | "not_framed" | "token_missing";

export class HostError extends Error {
  constructor(
    readonly failure: HostFailure,
    /** Whose script it is that is missing. */
    readonly scriptHost = "",
  ) {
    super(failure);
  }
}
