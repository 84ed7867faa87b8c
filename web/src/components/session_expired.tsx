import type { Host } from "../host.ts";
import { texts } from "../texts.ts";
import { Notice } from "./notice.tsx";

export function SessionExpired({ host }: { host: Host }) {
  return host.outside ? (
    <Notice title={texts.sessionExpiredTitle} text={texts.sessionExpiredOutside} />
  ) : (
    <Notice
      title={texts.sessionExpiredTitle}
      text={texts.sessionExpired}
      action={texts.reloadPage}
      onAct={host.reload}
    />
  );
}
