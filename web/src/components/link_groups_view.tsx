import type { ComponentChildren } from "preact";
import { useRef, useState } from "preact/hooks";
import { addressOf } from "../address.ts";
import type { Api, Link } from "../api.ts";
import type { GitlabSession } from "../gitlab.ts";
import type { Host } from "../host.ts";
import { useLocalNetworkAccess } from "../local_network.ts";
import { useLeave, useSeveral } from "../several.ts";
import { texts } from "../texts.ts";
import { BackButton } from "./back_button.tsx";
import { Button } from "./button.tsx";
import { GroupPicker, LinkOutcomes, useChoice } from "./group_picker.tsx";
import { Heading } from "./heading.tsx";
import { SectionMessage } from "./section_message.tsx";
import { SignInPanel } from "./sign_in_panel.tsx";

interface LinkGroupsViewProps {
  api: Api;
  host: Host;
  link: Link;
  sessions: Map<string, GitlabSession>;
  /** Why nothing can be changed. */
  readOnly: ComponentChildren;
  onBack: () => void;
}

export function LinkGroupsView({
  api,
  host,
  link,
  sessions,
  readOnly,
  onBack,
}: LinkGroupsViewProps) {
  const [session, setSession] = useState(sessions.get(link.id) ?? null);
  const [ended, setEnded] = useState(false);
  // These outlast a sign-in.
  const choice = useChoice();
  const linking = useSeveral();
  const leave = useLeave(linking, onBack);
  const localNetwork = useLocalNetworkAccess();
  const address = addressOf(link.instance_url);
  const mayCall = host.mayCall(new URL(link.instance_url).origin);

  // Whoever signs in next need not hear what was done before.
  const left = useRef(false);
  const signedIn = (opened: GitlabSession) => {
    if (left.current) {
      left.current = false;
      linking.clear();
    }
    sessions.set(link.id, opened);
    setEnded(false);
    setSession(opened);
  };
  const signOut = () => {
    sessions.delete(link.id);
    setSession(null);
  };
  const end = (session: GitlabSession) => {
    // Somebody may have signed in again by the time that the last call of the old session says so.
    if (sessions.get(link.id) === session) {
      setEnded(true);
      signOut();
    }
  };
  const selected = choice.selected.size;

  const leaveGitlab = async () => {
    // Nothing goes on in the name of somebody who has signed out; what was done by then is told.
    const acts = linking.progress !== null;
    left.current = true;
    sessions.delete(link.id);
    await linking.stop();
    setEnded(false);
    choice.clear();
    if (!acts) {
      linking.clear();
    }
    setSession(null);
  };

  return (
    <>
      <BackButton onClick={leave}>{texts.backToGroups}</BackButton>
      <header class="page-header">
        <div class="page-header-titles">
          <Heading takeFocus>{texts.linkTitle(address)}</Heading>
          <p class="subtle">{texts.linkText}</p>
        </div>
      </header>
      {readOnly}
      {!mayCall && (
        <SectionMessage
          appearance="information"
          title={texts.needsReloadTitle}
          actions={
            <Button appearance="primary" onClick={host.reload}>
              {texts.reloadPage}
            </Button>
          }
        >
          <p>{texts.needsReload(address)}</p>
        </SectionMessage>
      )}
      {mayCall && !session && (
        <>
          {ended && (
            <SectionMessage appearance="warning" title={texts.gitlabSignedOut} alert>
              {selected > 0 && <p>{texts.stillSelected(selected)}</p>}
            </SectionMessage>
          )}
          {!linking.progress && <LinkOutcomes outcomes={linking.outcomes} />}
          <SignInPanel
            api={api}
            host={host}
            link={link}
            localNetwork={localNetwork}
            onSignedIn={signedIn}
          />
        </>
      )}
      {mayCall && session && (
        <GroupPicker
          api={api}
          link={link}
          session={session}
          localNetwork={localNetwork}
          choice={choice}
          linking={linking}
          onSignOut={leaveGitlab}
          onEnded={() => end(session)}
        />
      )}
    </>
  );
}
