import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { addressOf } from "../address.ts";
import { type Api, causeOf, type Link, type LinkedGroup, RelayError } from "../api.ts";
import { useLinkedGroups } from "../linked_groups.ts";
import { type Outcome, type Several, useLeave, useSeveral } from "../several.ts";
import { texts } from "../texts.ts";
import { ActionBar } from "./action_bar.tsx";
import { BackButton } from "./back_button.tsx";
import { Button } from "./button.tsx";
import { Checkbox } from "./checkbox.tsx";
import { EmptyState } from "./empty_state.tsx";
import { Failure } from "./failure.tsx";
import { GroupRow } from "./group_row.tsx";
import { Heading } from "./heading.tsx";
import { Outcomes } from "./outcomes.tsx";
import { Loading } from "./spinner.tsx";
import { Time } from "./time.tsx";
import { UnlinkDialog } from "./unlink_dialog.tsx";

interface GroupsViewProps {
  api: Api;
  link: Link;
  mayChange: boolean;
  /** Why not. */
  readOnly: ComponentChildren;
  onBack: () => void;
  onLinkGroups: () => void;
}

export function GroupsView({
  api,
  link,
  mayChange,
  readOnly,
  onBack,
  onLinkGroups,
}: GroupsViewProps) {
  const groups = useLinkedGroups(api, link.id, true);
  const unlinking = useSeveral();
  const leave = useLeave(unlinking, onBack);
  const linkGroups = useLeave(unlinking, onLinkGroups);
  const address = addressOf(link.instance_url);
  const { linked, failure, reload } = groups;

  return (
    <>
      <BackButton onClick={leave}>{texts.backToInstances}</BackButton>
      <header class="page-header">
        <div class="page-header-titles">
          <Heading takeFocus>{texts.groupsTitle(address)}</Heading>
          <p class="subtle">{texts.groupsText}</p>
        </div>
        {mayChange && linked && linked.length > 0 && (
          <Button appearance="primary" onClick={linkGroups}>
            {texts.linkGroups}
          </Button>
        )}
      </header>
      {readOnly}
      {failure && (
        <Failure
          cause={failure}
          actions={
            <>
              <Button onClick={() => reload()}>{texts.tryAgain}</Button>
              {mayChange && (
                <Button appearance="subtle" onClick={linkGroups}>
                  {texts.linkGroups}
                </Button>
              )}
            </>
          }
        />
      )}
      {!failure && !linked && <Loading text={texts.groupsLoadingList} />}
      {linked && (
        <Linked
          api={api}
          linkId={link.id}
          linked={linked}
          unlinking={unlinking}
          mayChange={mayChange}
          onUnlinked={groups.drop}
          onLinkGroups={linkGroups}
        />
      )}
    </>
  );
}

interface LinkedProps {
  api: Api;
  linkId: string;
  linked: LinkedGroup[];
  unlinking: Several;
  mayChange: boolean;
  onUnlinked: (groupId: number) => void;
  onLinkGroups: () => void;
}

function Linked({
  api,
  linkId,
  linked,
  unlinking,
  mayChange,
  onUnlinked,
  onLinkGroups,
}: LinkedProps) {
  const [filter, setFilter] = useState("");
  const [selected, setSelected] = useState<ReadonlySet<number>>(new Set());
  const [confirming, setConfirming] = useState(false);
  const { progress, outcomes } = unlinking;

  const wanted = filter.trim().toLowerCase();
  const shown = linked.filter(({ full_name }) => full_name.toLowerCase().includes(wanted));
  const chosen = linked.filter(({ id }) => selected.has(id));
  const shownChosen = shown.filter(({ id }) => selected.has(id)).length;

  const select = (ids: number[], on: boolean) => {
    const next = new Set(selected);
    for (const id of ids) {
      on ? next.add(id) : next.delete(id);
    }
    setSelected(next);
  };

  const unlink = async () => {
    setConfirming(false);
    await unlinking.run(chosen, async ({ id, full_name }): Promise<Outcome> => {
      try {
        await unlinkOnce(api, linkId, id);
      } catch (error) {
        return { id, name: full_name, cause: causeOf(error) };
      }
      onUnlinked(id);
      setSelected((before) => new Set([...before].filter((other) => other !== id)));
      return { id, name: full_name, cause: null };
    });
  };

  const results = !progress && (
    <Outcomes
      outcomes={outcomes}
      done={texts.unlinkDone}
      doneInPart={texts.unlinkDoneInPart}
      failedTitle={texts.unlinkFailedTitle}
    />
  );

  if (linked.length === 0) {
    return (
      <>
        {results}
        <EmptyState title={texts.noGroupsTitle} text={texts.noGroupsText}>
          {mayChange && (
            <Button appearance="primary" onClick={onLinkGroups}>
              {texts.linkGroups}
            </Button>
          )}
        </EmptyState>
      </>
    );
  }
  return (
    <section aria-label={texts.linkedGroups}>
      <div class="toolbar">
        <input
          class="text-field"
          type="search"
          aria-label={texts.filterGroups}
          placeholder={texts.filterGroups}
          value={filter}
          onInput={(event) => setFilter(event.currentTarget.value)}
        />
        <p class="subtle" role="status">
          {wanted
            ? texts.filterFound(shown.length, linked.length)
            : texts.groupsLinked(linked.length)}
        </p>
      </div>
      {results}
      {shown.length === 0 && <p class="subtle">{texts.filterNone}</p>}
      {mayChange && shown.length > 0 && (
        <div class="selection-bar">
          <Checkbox
            label={texts.selectAll}
            checked={shownChosen === shown.length}
            indeterminate={shownChosen > 0 && shownChosen < shown.length}
            disabled={progress !== null}
            onChange={(on) =>
              select(
                shown.map(({ id }) => id),
                on,
              )
            }
          />
        </div>
      )}
      <ul class="rows">
        {shown.map((group) => (
          <GroupRow
            key={group.id}
            fullName={group.full_name}
            description={group.description}
            aside={group.created_at && <Time at={group.created_at} say={texts.linkedSince} />}
            {...(mayChange && {
              selection: {
                checked: selected.has(group.id),
                disabled: progress !== null,
                onChange: (on) => select([group.id], on),
              },
            })}
          />
        ))}
      </ul>
      {(mayChange || progress) && (
        <ActionBar
          selected={chosen.length}
          elsewhere={chosen
            .filter((group) => !shown.includes(group))
            .map(({ id, full_name }) => ({ id, name: full_name }))}
          act={unlinking}
          acting={texts.unlinking}
          onDrop={(id) => select([id], false)}
          onClear={() => setSelected(new Set())}
        >
          <Button
            disabled={chosen.length === 0}
            busy={progress !== null}
            onClick={() => setConfirming(true)}
          >
            {texts.unlink(chosen.length)}
          </Button>
        </ActionBar>
      )}
      {confirming && (
        <UnlinkDialog groups={chosen} onClose={() => setConfirming(false)} onConfirm={unlink} />
      )}
    </section>
  );
}

// Somebody else may have been faster.
async function unlinkOnce(api: Api, linkId: string, groupId: number) {
  try {
    await api.unlinkGroup(linkId, groupId);
  } catch (error) {
    if (!(error instanceof RelayError && error.code === "group_unknown")) {
      throw error;
    }
  }
}
