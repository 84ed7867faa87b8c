import type { ComponentChildren } from "preact";
import { addressOf } from "../address.ts";
import {
  type LocalNetworkAccess,
  localNetworkAdvice,
  useLocalNetworkAccess,
} from "../local_network.ts";
import { texts } from "../texts.ts";
import { SectionMessage } from "./section_message.tsx";

interface UnreachableProps {
  instanceUrl: string;
  /** The relay sees a private address, or knows no better. */
  privateNetwork: boolean;
  access: LocalNetworkAccess | null;
  actions?: ComponentChildren;
}

/** fetch() says only "TypeError": so all that it may mean, the likely causes first. */
export function Unreachable({ instanceUrl, privateNetwork, access, actions }: UnreachableProps) {
  const accessNow = useLocalNetworkAccess(access);
  const mixed = window.location.protocol === "https:" && instanceUrl.startsWith("http:");
  const localNetwork = (
    <li key="local_network">
      {texts.causeLocalNetwork} {accessNow && localNetworkAdvice(accessNow)}
    </li>
  );
  return (
    <SectionMessage
      appearance="error"
      title={texts.unreachableTitle(addressOf(instanceUrl))}
      alert
      actions={
        <>
          {actions}
          <a class="link" href={instanceUrl} target="_blank" rel="noopener noreferrer">
            {texts.openInstance}
          </a>
        </>
      }
    >
      <p>{texts.unreachableCauses}</p>
      <ul class="causes">
        {mixed && <li>{texts.causeMixed}</li>}
        {privateNetwork && localNetwork}
        <li>{texts.causeDown}</li>
        <li>{texts.causeCertificate}</li>
        {!privateNetwork && localNetwork}
        <li>{texts.causeCors}</li>
      </ul>
    </SectionMessage>
  );
}
