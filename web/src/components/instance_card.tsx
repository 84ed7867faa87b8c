import { useEffect, useRef, useState } from "preact/hooks";
import { addressOf } from "../address.ts";
import { type Api, type Cause, causeOf, explained, type Link, type LinkState } from "../api.ts";
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
  onChange: (link: Link) => void;
  onSay: (announcement: string) => void;
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
  onSay,
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
  // An act that failed is no news of what the instance has become since.
  // biome-ignore lint/correctness/useExhaustiveDependencies: the state is what it is about.
  useEffect(() => setFailure(null), [link.state]);

  useChangesSaid(shownState, onSay, (state) =>
    texts.became[state](address, sentence((fault ?? failingCause(link)).message)),
  );

  // What came of asking for the groups shows when they are drawn.
  const asked = useRef<unknown[] | null>(null);
  const { linked, failure: notTold, reload } = groups;
  useEffect(() => {
    if (asked.current && (asked.current[0] !== linked || asked.current[1] !== notTold)) {
      asked.current = null;
      onSay(texts.lookedAgain(address, found(fault ?? notTold)));
    }
  }, [linked, notTold, fault, address, onSay]);
  const askAgain = async () => {
    asked.current = [linked, notTold];
    setBusy(true);
    await reload();
    setBusy(false);
  };

  const act = async (call: () => Promise<Link>, said: (changed: Link) => string) => {
    setBusy(true);
    setFailure(null);
    try {
      const changed = await call();
      onChange(changed);
      onSay(said(changed));
      if (hasGroups && changed.state === link.state) {
        reload();
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
      onClick={() =>
        act(
          () => api.resend(link.id),
          (changed) => texts.resent(address, foundOf(changed)),
        )
      }
    >
      {texts.tryAgain}
    </Button>
  );
  // What a round found, the relay looks at anew; for what shows by the groups, they are asked for.
  const checkAgain = silence ? (
    <Button label={texts.checkAgainOf(address)} busy={busy} onClick={askAgain}>
      {texts.checkAgain}
    </Button>
  ) : (
    mayChange && (
      <Button
        label={texts.checkAgainOf(address)}
        busy={busy}
        onClick={() =>
          act(
            () => api.look(link.id),
            (changed) => texts.lookedAgain(address, foundOf(changed)),
          )
        }
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
      onClick={() =>
        act(
          () => api.undo(link.id),
          () => texts.undone(address),
        )
      }
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
        <Failure cause={failingCause(link)} alert={false} actions={tryAgain}>
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
        <SectionMessage appearance="information" title={texts.connectingTitle}>
          <p>{texts.connectingText}</p>
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

type Shown = keyof typeof APPEARANCES;

/** Says what a card has become, whoever did it; what is not known yet is no news. */
function useChangesSaid(
  shown: Shown,
  say: (text: string) => void,
  told: (state: LinkState) => string,
) {
  const before = useRef<LinkState | null>(null);
  useEffect(() => {
    if (shown === "checking" || shown === "unknown") {
      return;
    }
    if (before.current !== null && before.current !== shown) {
      say(told(shown));
    }
    before.current = shown;
  });
}

function failingCause({ last_error }: Link): Cause {
  return explained(last_error ?? { code: "", message: texts.failingUnknown, hint: null, id: null });
}

/** What a look or an attempt has found. */
function foundOf(link: Link): string {
  switch (link.state) {
    case "connected":
      return found(link.faults[0] ?? null);
    case "failing":
      return found(failingCause(link));
    default:
      return texts.foundNothing;
  }
}

function found(cause: Cause | null): string {
  return cause ? sentence(explained(cause).message) : texts.foundWell;
}

function removingText({ attempts, can_undo, next_attempt_at }: Link): string {
  if (next_attempt_at === null) {
    return texts.removingTold;
  }
  if (!can_undo) {
    return texts.removingTelling;
  }
  return attempts === 0 ? texts.removingSoon : texts.removingUnheard;
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
      {next && <Time at={next} ahead say={texts.nextAttempt} />}
    </p>
  );
}
