import { useEffect, useRef, useState } from "preact/hooks";
import { addressOf } from "../address.ts";
import { type Api, type Cause, explained, isSessionOver, type Link } from "../api.ts";
import type { GitlabSession } from "../gitlab.ts";
import type { Host } from "../host.ts";
import { forgetLinked, type KnownGroups } from "../known_groups.ts";
import { useLinks } from "../links.ts";
import { useOnline } from "../online.ts";
import { texts } from "../texts.ts";
import { Announcements, useAnnouncements } from "./announcements.tsx";
import { Button } from "./button.tsx";
import { Failure } from "./failure.tsx";
import { GroupsView } from "./groups_view.tsx";
import { Heading } from "./heading.tsx";
import { InstancesView } from "./instances_view.tsx";
import { LinkGroupsView } from "./link_groups_view.tsx";
import { ReadOnly } from "./read_only.tsx";
import { SectionMessage } from "./section_message.tsx";
import { SessionExpired } from "./session_expired.tsx";
import { Starting } from "./starting.tsx";

type View = { name: "instances" } | { name: "groups" | "link_groups"; linkId: string };

export function Workspace({ host, api }: { host: Host; api: Api }) {
  const list = useLinks(api);
  const online = useOnline();
  const [view, setView] = useState<View>({ name: "instances" });
  const [navigated, setNavigated] = useState(false);
  const [announcements, say] = useAnnouncements();
  // An instance whose groups somebody looked at when it went.
  const [lost, setLost] = useState<string | null>(null);
  // Sign-ins live as long as the page, and in its memory only.
  const sessions = useRef(new Map<string, GitlabSession>());
  const known = useRef<KnownGroups>(new Map());

  const go = (to: View) => {
    setNavigated(true);
    setLost(null);
    if ("linkId" in to) {
      forgetLinked(known.current, to.linkId);
    }
    setView(to);
  };

  const { answer, failure, refresh } = list;
  const link = "linkId" in view ? answer?.links.find(({ id }) => id === view.linkId) : undefined;
  const shown = useRef<Link[]>([]);
  useEffect(() => {
    if (!answer) {
      return;
    }
    const gone = shown.current.filter(({ id }) => !answer.links.some((other) => other.id === id));
    shown.current = answer.links;
    for (const { id, instance_url } of gone) {
      sessions.current.delete(id);
      say(texts.gone(addressOf(instance_url)));
      if ("linkId" in view && view.linkId === id) {
        setNavigated(true);
        setView({ name: "instances" });
        setLost(addressOf(instance_url));
      }
    }
  }, [answer, view, say]);

  const mayChange = answer?.may_change ?? null;
  const mightChange = useRef(mayChange);
  useEffect(() => {
    if (mightChange.current !== null && mayChange !== null && mightChange.current !== mayChange) {
      say(mayChange ? texts.mayChange : texts.readOnlyTitle);
    }
    mightChange.current = mayChange ?? mightChange.current;
  }, [mayChange, say]);

  const readOnly = answer && !answer.may_change && answer.reason && (
    <ReadOnly reason={explained(answer.reason)} onRefresh={refresh} />
  );

  const sessionOver = failure !== null && isSessionOver(failure);

  if (sessionOver && !answer) {
    return <SessionExpired host={host} />;
  }
  return (
    <main class="page">
      <Announcements all={announcements} />
      {!online && (
        <SectionMessage appearance="warning" title={texts.offlineTitle} alert>
          <p>{texts.offlineBanner}</p>
        </SectionMessage>
      )}
      {failure && online && answer && (
        <Failure
          cause={keepsTrying(sessionOver ? withoutSession(failure, host) : failure)}
          appearance="warning"
          title={texts.staleTitle}
          actions={
            <>
              <Button onClick={refresh}>{texts.tryAgain}</Button>
              {sessionOver && !host.outside && (
                <Button onClick={host.reload}>{texts.reloadPage}</Button>
              )}
            </>
          }
        />
      )}
      {!answer && failure && (
        <>
          <Heading takeFocus={false}>{texts.appName}</Heading>
          {online && (
            <Failure
              cause={keepsTrying(failure)}
              actions={<Button onClick={refresh}>{texts.tryAgain}</Button>}
            />
          )}
        </>
      )}
      {!answer && !failure && <Starting text={texts.loading} />}
      {lost && (
        <SectionMessage appearance="warning" title={texts.lostTitle(lost)} alert>
          <p>{texts.lostText}</p>
        </SectionMessage>
      )}
      {link?.state === "removing" && (
        <SectionMessage
          appearance="warning"
          title={texts.leavingTitle(addressOf(link.instance_url))}
          alert
        >
          <p>{link.can_undo ? texts.leavingText : texts.leavingForGood}</p>
        </SectionMessage>
      )}
      {answer &&
        (link && view.name === "groups" ? (
          <GroupsView
            key={link.id}
            api={api}
            link={link}
            mayChange={answer.may_change}
            readOnly={readOnly}
            onBack={() => go({ name: "instances" })}
            onLinkGroups={() => go({ name: "link_groups", linkId: link.id })}
          />
        ) : link && view.name === "link_groups" ? (
          <LinkGroupsView
            key={link.id}
            api={api}
            host={host}
            link={link}
            sessions={sessions.current}
            readOnly={readOnly}
            onBack={() => go({ name: "groups", linkId: link.id })}
          />
        ) : (
          <InstancesView
            api={api}
            boot={host.boot}
            answer={answer}
            known={known.current}
            takeFocus={navigated}
            onChange={(changed) => {
              setLost(null);
              list.put(changed);
            }}
            onSay={say}
            readOnly={readOnly}
            onRefresh={refresh}
            onManageGroups={(linkId) => go({ name: "groups", linkId })}
            onLinkGroups={(linkId) => go({ name: "link_groups", linkId })}
          />
        ))}
    </main>
  );
}

// That the host is silent says less than that the relay refuses what it gave.
function withoutSession(failure: Cause, { outside }: Host): Cause {
  const hint = outside ? texts.sessionExpiredOutside : texts.sessionExpired;
  return failure.code === "token_missing"
    ? failure
    : { ...failure, message: texts.sessionExpiredTitle, hint };
}

// The list does; an act that fails is the user's to try again.
function keepsTrying(failure: Cause): Cause {
  return { ...failure, hint: [failure.hint, texts.keepsTrying].filter(Boolean).join(" ") };
}
