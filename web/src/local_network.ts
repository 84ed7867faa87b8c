// Chromium 142 and later ask the user before a public page may call an address in a private network
// (Local Network Access, https://wicg.github.io/local-network-access/). A cross-origin frame also needs
// its parent to pass that permission on. Without either, fetch() fails with the same TypeError as for an
// instance that is down.

import { useEffect, useState } from "preact/hooks";
import { texts } from "./texts.ts";

export type LocalNetworkAccess = "granted" | "denied" | "prompt" | "not_delegated" | "unknown";

// Chromium 145 split the permission of 142 in two; an instance is never on the loopback one.
const PERMISSIONS = ["local-network", "local-network-access"];

interface FeaturePolicy {
  features(): string[];
  allowsFeature(feature: string): boolean;
}

/** `known`: what the browser said before; its user may have answered its question meanwhile. */
export function useLocalNetworkAccess(known: LocalNetworkAccess | null = null) {
  const [access, setAccess] = useState(known);
  useEffect(() => {
    localNetworkAccess().then(setAccess);
  }, []);
  return access;
}

/** What to do about it, for this page. */
export function localNetworkAdvice(access: LocalNetworkAccess): string {
  return texts.localNetwork(window.location.origin)[access];
}

async function localNetworkAccess(): Promise<LocalNetworkAccess> {
  const { featurePolicy } = document as Document & { featurePolicy?: FeaturePolicy };
  for (const name of PERMISSIONS) {
    // A permission that is not passed on reads as denied, though the user cannot allow it.
    if (featurePolicy?.features().includes(name) && !featurePolicy.allowsFeature(name)) {
      return "not_delegated";
    }
    try {
      return (await navigator.permissions.query({ name: name as PermissionName })).state;
    } catch {
      // A browser that does not know this name may know the other.
    }
  }
  return "unknown";
}
