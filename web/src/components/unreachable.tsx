import { addressOf } from "../address.ts";
import { texts } from "../texts.ts";
import { LocalNetworkHelp } from "./local_network_help.tsx";
import { SectionMessage } from "./section_message.tsx";

interface UnreachableProps {
  instanceUrl: string;
  /** The relay sees a private address, or knows no better. */
  privateNetwork: boolean;
}

/** fetch() says only "TypeError": so all that it may mean, the likely causes first. */
export function Unreachable({ instanceUrl, privateNetwork }: UnreachableProps) {
  const mixed = window.location.protocol === "https:" && instanceUrl.startsWith("http:");
  const localNetwork = (
    <li key="local_network">
      {texts.causeLocalNetwork} <LocalNetworkHelp />
    </li>
  );
  return (
    <SectionMessage
      appearance="error"
      title={texts.unreachableTitle(addressOf(instanceUrl))}
      alert
      actions={
        <a class="link" href={instanceUrl} target="_blank" rel="noopener noreferrer">
          {texts.openInstance}
        </a>
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
