import { useState } from "preact/hooks";
import { addressOf } from "../address.ts";
import { type Api, type Cause, causeOf, explained, type Link } from "../api.ts";
import { type KnownGroups, useKnownGroups } from "../known_groups.ts";
import { useWatchedGroups } from "../linked_groups.ts";
import { sentence } from "../sentence.ts";
import { texts } from "../texts.ts";
import { Button } from "./button.tsx";
import { Failure, RequestId } from "./failure.tsx";
import { GroupsCount } from "./groups_count.tsx";
import { Lozenge } from "./lozenge.tsx";
import { SectionMessage } from "./section_message.tsx";
import { Time } from "./time.tsx";

interface InstanceCardProps {
  api: Api;
  link: Link;
  known: KnownGroups;
  mayChange: boolean;
  /** Whoever has just removed it has little time to think again. */
  focusUndo: boolean;
  onChange: (link: Link, announcement: string) => void;
  /** The removal stays: the card may go at any moment, so that is said beside it. */
  onTooLate: (cause: Cause) => void;
  onRemove: () => void;
  onManageGroups: () => void;
  onLinkGroups: () => void;
}

const APPEARANCES = {
  pending: "information",
  connected: "success",
  failing: "danger",
  removing: "default",
  checking: "default",
  unknown: "default",
} as const;

const TOO_LATE = ["too_late_to_undo", "link_unknown"];

export function InstanceCard({
  api,
  link,
  known,
  mayChange,
  focusUndo,
  onChange,
  onTooLate,
  onRemove,
  onManageGroups,
  onLinkGroups,
}: InstanceCardProps) {
  const address = addressOf(link.instance_url);
  const hasGroups = link.state === "connected" || link.state === "failing";
  const groups = useKnownGroups(known, link.id, useWatchedGroups(api, link.id, link.state));
  // The relay speaks to a connected instance only when something changes. That one is down, or was changed since,
  // shows when its groups are asked for, or when the relay has a look at it.
  const silence = link.state === "connected" ? groups.fault : null;
  const fault = silence ?? (link.state === "connected" ? (link.faults[0] ?? null) : null);
  const untold = link.state === "connected" && !groups.linked;
  const shownState = fault
    ? "failing"
    : !untold
      ? link.state
      : groups.failure
        ? "unknown"
        : "checking";
  const [busy, setBusy] = useState(false);
  const [failure, setFailure] = useState<Cause | null>(null);

  const act = async (call: () => Promise<Link>, announcement: string) => {
    setBusy(true);
    setFailure(null);
    try {
      const changed = await call();
      onChange(changed, announcement);
      if (hasGroups && changed.state === link.state) {
        groups.reload();
      }
    } catch (error) {
      const cause = causeOf(error);
      TOO_LATE.includes(cause.code) ? onTooLate(cause) : setFailure(cause);
    } finally {
      setBusy(false);
    }
  };

  const tryAgain = mayChange && (
    <Button
      label={texts.tryAgainOf(address)}
      busy={busy}
      onClick={() => act(() => api.resend(link.id), texts.resent(address))}
    >
      {texts.tryAgain}
    </Button>
  );
  // What a round found, the relay looks at anew; for what shows by the groups, they are asked for.
  const checkAgain = silence ? (
    <Button label={texts.checkAgainOf(address)} onClick={groups.reload}>
      {texts.checkAgain}
    </Button>
  ) : (
    mayChange && (
      <Button
        label={texts.checkAgainOf(address)}
        busy={busy}
        onClick={() => act(() => api.look(link.id), texts.lookedAgain(address))}
      >
        {texts.checkAgain}
      </Button>
    )
  );
  const undo = mayChange && link.can_undo && (
    <Button
      label={texts.undoOf(address)}
      busy={busy}
      takeFocus={focusUndo}
      onClick={() => act(() => api.undo(link.id), texts.undone(address))}
    >
      {texts.undo}
    </Button>
  );
  const noneLinked = groups.linked?.length === 0;

  return (
    <li class="card">
      <div class="card-main">
        <div class="card-titles">
          <h2>{address}</h2>
          <Lozenge appearance={APPEARANCES[shownState]}>{texts.states[shownState]}</Lozenge>
        </div>
        <ul class="meta">
          <li>
            {link.gitlab_version
              ? texts.gitlabVersion(link.gitlab_version)
              : texts.gitlabVersionUnknown}
          </li>
          <li>
            {link.last_seen_at ? (
              <Time at={link.last_seen_at} say={texts.lastActivity} />
            ) : (
              texts.noActivity
            )}
          </li>
          {hasGroups && (
            <li>
              <GroupsCount groups={groups} />
            </li>
          )}
        </ul>
      </div>
      <div class="button-row card-actions">
        {hasGroups &&
          (!mayChange ? (
            <Button label={texts.viewGroupsOf(address)} onClick={onManageGroups}>
              {texts.viewGroups}
            </Button>
          ) : noneLinked ? (
            <Button label={texts.linkGroupsOf(address)} onClick={onLinkGroups}>
              {texts.linkGroups}
            </Button>
          ) : (
            <Button label={texts.manageGroupsOf(address)} onClick={onManageGroups}>
              {texts.manageGroups}
            </Button>
          ))}
        {mayChange && link.state !== "removing" && (
          <Button appearance="subtle" label={texts.removeOf(address)} onClick={onRemove}>
            {texts.remove}
          </Button>
        )}
      </div>
      {link.state === "failing" && (
        <Failure
          cause={explained(
            link.last_error ?? {
              code: "",
              message: texts.failingUnknown,
              hint: null,
              id: null,
            },
          )}
          alert={false}
          actions={tryAgain}
        >
          <Attempts link={link} />
        </Failure>
      )}
      {fault && (
        <Failure
          cause={explained(fault)}
          alert={false}
          actions={fault.code === "instance_secret" ? tryAgain : checkAgain}
        />
      )}
      {link.state === "pending" && (
        <SectionMessage
          appearance="information"
          title={texts.connectingTitle}
          actions={link.attempts > 0 && tryAgain}
        >
          <p>
            {link.last_error ? sentence(explained(link.last_error).message) : texts.connectingText}
          </p>
          <Attempts link={link} />
        </SectionMessage>
      )}
      {link.state === "removing" && (
        <SectionMessage appearance="information" title={texts.removingTitle} actions={undo}>
          <p>{removingText(link)}</p>
          {link.last_error && <Hindrance cause={explained(link.last_error)} />}
          {link.purge && <p>{texts.removingPurge[link.can_undo ? "wanted" : link.purge.state]}</p>}
          {link.purge?.last_error && <Hindrance cause={explained(link.purge.last_error)} />}
        </SectionMessage>
      )}
      {failure && <Failure cause={failure} />}
    </li>
  );
}

function removingText({ attempts, can_undo, next_attempt_at }: Link): string {
  if (next_attempt_at === null) {
    return texts.removingTold;
  }
  return attempts === 0 && can_undo ? texts.removingSoon : texts.removingTelling;
}

/** Why it takes longer, without alarm: the relay goes on. */
function Hindrance({ cause: { message, hint, id } }: { cause: Cause }) {
  return (
    <div class="hindrance">
      <p>{sentence(message)}</p>
      {hint && <p class="subtle">{hint}</p>}
      <RequestId id={id} />
    </div>
  );
}

function Attempts({ link: { attempts, last_error, next_attempt_at } }: { link: Link }) {
  if (attempts === 0) {
    return null;
  }
  // What is due is being made; its outcome comes with the next list.
  const next = next_attempt_at && Date.parse(next_attempt_at) > Date.now() && next_attempt_at;
  return (
    <p class="subtle">
      {texts.attempts(attempts)} {last_error && <Time at={last_error.at} say={texts.failedAt} />}{" "}
      {next && <Time at={next} say={texts.nextAttempt} />}
    </p>
  );
}
