import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import type { Api, Cause, ContextToken, Link } from "../api.ts";
import {
  causeOfGitlab,
  GitlabError,
  type GitlabSession,
  type Group,
  type GroupPage,
} from "../gitlab.ts";
import { isLinked, sameNamed, useLinkedGroups } from "../linked_groups.ts";
import type { LocalNetworkAccess } from "../local_network.ts";
import type { Outcome, Several } from "../several.ts";
import { texts } from "../texts.ts";
import { ActionBar } from "./action_bar.tsx";
import { Button } from "./button.tsx";
import { Failure } from "./failure.tsx";
import { GroupRow } from "./group_row.tsx";
import { Lozenge } from "./lozenge.tsx";
import { Outcomes } from "./outcomes.tsx";
import { Pagination } from "./pagination.tsx";
import { Loading } from "./spinner.tsx";
import { Unreachable } from "./unreachable.tsx";

interface GroupPickerProps {
  api: Api;
  link: Link;
  session: GitlabSession;
  localNetwork: LocalNetworkAccess | null;
  choice: Choice;
  linking: Several;
  onSignOut: () => void;
  /** GitLab no longer takes the access token. */
  onEnded: () => void;
}

const LINKED = {
  yes: <Lozenge appearance="success">{texts.alreadyLinked}</Lozenge>,
  maybe: <Lozenge appearance="information">{texts.maybeLinked}</Lozenge>,
};

const DEBOUNCE_MS = 300;
const SEARCH_MIN_CHARS = 3;
const CONTEXT_TOKEN_MIN_LEFT_MS = 60_000;

export function GroupPicker({
  api,
  link,
  session,
  localNetwork,
  choice,
  linking,
  onSignOut,
  onEnded,
}: GroupPickerProps) {
  const alreadyLinked = useLinkedGroups(api, link.id, true);
  const { typed, setTyped, query, setQuery, selected, setSelected } = choice;
  const { justLinked, setJustLinked, seen } = choice;
  const { progress } = linking;
  // The last answer stays in sight, and the focus on its controls, while the next one is on its way.
  const [found, setFound] = useState<GroupPage | null>(null);
  const [loading, setLoading] = useState(true);
  const [problem, setProblem] = useState<Cause | "unreachable" | null>(null);
  const [tries, setTries] = useState(0);
  const contextToken = useContextToken(api, link.id);
  const searchField = useRef<HTMLInputElement>(null);

  useEffect(() => {
    searchField.current?.focus();
  }, []);

  const search = typed.trim();
  const tooShort = search.length > 0 && search.length < SEARCH_MIN_CHARS;

  useEffect(() => {
    if (tooShort) {
      return undefined;
    }
    const timer = setTimeout(
      () => setQuery((before) => (before.search === search ? before : { search, page: 1 })),
      DEBOUNCE_MS,
    );
    return () => clearTimeout(timer);
  }, [search, tooShort, setQuery]);

  // biome-ignore lint/correctness/useExhaustiveDependencies: `tries` asks the same once more.
  useEffect(() => {
    const abort = new AbortController();
    setLoading(true);
    setProblem(null);
    const show = (page: GroupPage | null) => {
      for (const group of page?.groups ?? []) {
        seen.set(group.id, group);
      }
      setFound(page);
      setLoading(false);
    };
    session.groups(query.search, query.page, abort.signal).then(show, (error) => {
      if (abort.signal.aborted) {
        return;
      }
      show(null);
      if (isOver(error)) {
        onEnded();
      } else {
        setProblem(isUnreachable(error) ? "unreachable" : causeOfGitlab(error));
      }
    });
    return () => abort.abort();
  }, [session, query, tries]);

  const linkedness = (group: Group) =>
    justLinked.has(group.id) ? "yes" : isLinked(group, alreadyLinked.linked ?? [], seen.values());
  const told = (group: Group, name: string) =>
    sameNamed(group, seen.values()).length > 0 ? texts.withPath(name, group.full_path) : name;
  const elsewhere = [...selected.values()].filter(
    ({ id }) => !found?.groups.some((group) => group.id === id),
  );

  const select = (group: Group, on: boolean) => {
    const next = new Map(selected);
    on ? next.set(group.full_path, group) : next.delete(group.full_path);
    setSelected(next);
  };

  const linkSelected = async () => {
    const chosen = [...selected.values()];
    if (chosen.length === 0) {
      return;
    }
    let over = false;
    await linking.run(chosen, async (group): Promise<Outcome | null> => {
      const { id, full_path } = group;
      const name = told(group, group.full_name);
      try {
        await session.link(full_path, await contextToken());
      } catch (error) {
        over ||= isOver(error);
        return isOver(error) ? null : { id, name, cause: causeOfGitlab(error) };
      }
      setJustLinked((before) => new Set(before).add(id));
      setSelected((before) => without(before, full_path));
      return { id, name, cause: null };
    });
    if (over) {
      onEnded();
    }
  };

  const linkUnreachable =
    !progress && linking.outcomes.some(({ cause }) => cause?.code === "unreachable");

  const tryAgain = <Button onClick={() => setTries(tries + 1)}>{texts.tryAgain}</Button>;

  return (
    <section aria-label={texts.linkGroups}>
      <div class="signed-in">
        <p>{texts.signedInAs(session.user.name, session.user.username)}</p>
        <Button appearance="link" onClick={onSignOut}>
          {texts.signOut}
        </Button>
      </div>
      <div class="field">
        <label for="search-groups">{texts.searchGroups}</label>
        <input
          ref={searchField}
          id="search-groups"
          class="text-field"
          type="search"
          autoComplete="off"
          aria-describedby="search-groups-hint"
          value={typed}
          onInput={(event) => {
            setTyped(event.currentTarget.value);
            linking.clear();
          }}
        />
        <p class="field-hint" id="search-groups-hint">
          {session.user.is_admin ? texts.searchHintAdmin : texts.searchHint}
        </p>
      </div>
      {!progress && <LinkOutcomes outcomes={linking.outcomes} />}
      {(problem === "unreachable" || linkUnreachable) && (
        <Unreachable
          instanceUrl={link.instance_url}
          privateNetwork={session.privateNetwork}
          access={localNetwork}
          actions={problem && tryAgain}
        />
      )}
      {problem && problem !== "unreachable" && <Failure cause={problem} actions={tryAgain} />}
      {alreadyLinked.failure && (
        <Failure
          cause={alreadyLinked.failure}
          appearance="warning"
          title={texts.linkedUnknown}
          actions={<Button onClick={() => alreadyLinked.reload()}>{texts.tryAgain}</Button>}
        />
      )}
      {loading && !found && <Loading text={texts.groupsLoadingList} />}
      {found && (
        <>
          <p class={tooShort ? "subtle" : "assistive"} role="status">
            {tooShort
              ? texts.searchTooShort
              : loading
                ? texts.groupsLoadingList
                : `${texts.groupsFound(found.total)} ${texts.pageOf(found.page, found.totalPages)}`}
          </p>
          {found.groups.length === 0 && (
            <p class="subtle">{query.search ? texts.noGroupsFound : texts.noGroupsAtAll}</p>
          )}
          <ul class="rows" aria-busy={loading}>
            {found.groups.map((group) => {
              const linked = linkedness(group);
              return (
                <GroupRow
                  key={group.id}
                  fullName={told(group, group.full_name)}
                  leafName={told(group, group.name)}
                  description={group.description}
                  aside={linked !== "no" && LINKED[linked]}
                  selection={{
                    checked: linked === "yes" || selected.has(group.full_path),
                    disabled: linked === "yes" || progress !== null,
                    onChange: (on) => select(group, on),
                  }}
                />
              );
            })}
          </ul>
          <Pagination found={found} onPage={(page) => setQuery({ search: query.search, page })} />
        </>
      )}
      {(found || selected.size > 0) && (
        <ActionBar
          selected={selected.size}
          elsewhere={elsewhere.map((group) => ({
            id: group.id,
            name: told(group, group.full_name),
          }))}
          act={linking}
          acting={texts.linking}
          onDrop={(id) =>
            setSelected(new Map([...selected].filter(([, group]) => group.id !== id)))
          }
          onClear={() => setSelected(new Map())}
        >
          <Button
            appearance="primary"
            disabled={selected.size === 0}
            busy={progress !== null}
            onClick={linkSelected}
          >
            {texts.linkCount(selected.size)}
          </Button>
        </ActionBar>
      )}
    </section>
  );
}

export function LinkOutcomes({ outcomes }: { outcomes: Outcome[] }) {
  return (
    <Outcomes
      outcomes={outcomes}
      done={texts.linkDone}
      doneInPart={texts.linkDoneInPart}
      failedTitle={texts.linkFailedTitle}
      failedText={texts.linkFailedText}
    />
  );
}

/** What somebody looks for and has chosen. */
type Choice = ReturnType<typeof useChoice>;

const NOTHING_SOUGHT = { search: "", page: 1 };

export function useChoice() {
  const [typed, setTyped] = useState("");
  const [query, setQuery] = useState(NOTHING_SOUGHT);
  const [selected, setSelected] = useState<ReadonlyMap<string, Group>>(new Map());
  const [justLinked, setJustLinked] = useState<ReadonlySet<number>>(new Set());
  const seen = useRef(new Map<number, Group>()).current;
  const clear = () => {
    setTyped("");
    setQuery(NOTHING_SOUGHT);
    setSelected(new Map());
  };
  return {
    ...{ typed, setTyped, query, setQuery },
    ...{ selected, setSelected, justLinked, setJustLinked, seen },
    clear,
  };
}

/** One context token for many groups until it is nearly over, asked for once however many wait for it. */
function useContextToken(api: Api, linkId: string) {
  const current = useRef<Promise<ContextToken> | null>(null);
  return useCallback(async () => {
    const ask = () => {
      const asked = api.contextToken(linkId);
      current.current = asked;
      asked.catch(() => {
        // Whoever tries again asks again.
        if (current.current === asked) {
          current.current = null;
        }
      });
      return asked;
    };
    const known = current.current ?? ask();
    const { token, expires_at } = await known;
    if (Date.parse(expires_at) - Date.now() >= CONTEXT_TOKEN_MIN_LEFT_MS) {
      return token;
    }
    const renewed = current.current === known ? null : current.current;
    return (await (renewed ?? ask())).token;
  }, [api, linkId]);
}

function isOver(error: unknown) {
  return error instanceof GitlabError && error.failure === "signed_out";
}

function isUnreachable(error: unknown) {
  return error instanceof GitlabError && error.failure === "unreachable";
}

function without<V>(map: ReadonlyMap<string, V>, key: string): ReadonlyMap<string, V> {
  return new Map([...map].filter(([other]) => other !== key));
}
