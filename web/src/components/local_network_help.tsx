import { useEffect, useState } from "preact/hooks";
import { type LocalNetworkAccess, localNetworkAccess } from "../local_network.ts";
import { texts } from "../texts.ts";

/** What this browser says about reaching private networks, and what to do about it. */
export function LocalNetworkHelp() {
  const [access, setAccess] = useState<LocalNetworkAccess | null>(null);
  useEffect(() => {
    localNetworkAccess().then(setAccess);
  }, []);
  return access && <p>{texts.localNetwork[access]}</p>;
}
