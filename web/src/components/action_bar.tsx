import type { ComponentChildren } from "preact";
import { useRef } from "preact/hooks";
import type { Several } from "../several.ts";
import { texts } from "../texts.ts";
import { Button } from "./button.tsx";
import { Progress } from "./progress.tsx";

interface Selected {
  id: number;
  name: string;
}

interface ActionBarProps {
  selected: number;
  /** The selected that are not in sight. */
  elsewhere: Selected[];
  /** The act on them. */
  act: Several;
  acting: (done: number, total: number) => string;
  onDrop: (id: number) => void;
  onClear: () => void;
  /** What can be done with the selected. */
  children: ComponentChildren;
}

/** What is selected, wherever it is in the list. */
export function ActionBar({
  selected,
  elsewhere,
  act,
  acting,
  onDrop,
  onClear,
  children,
}: ActionBarProps) {
  const { progress } = act;
  return (
    <div class="action-bar">
      <div class="action-bar-text">
        {progress ? (
          <Progress text={acting(progress.done, progress.total)} {...progress} />
        ) : (
          <p role="status">{texts.selectedCount(selected)}</p>
        )}
        {!progress && elsewhere.length > 0 && <Elsewhere selected={elsewhere} onDrop={onDrop} />}
      </div>
      <div class="button-row">
        {selected > 0 && !progress && (
          <Button appearance="subtle" onClick={onClear}>
            {texts.clearSelection}
          </Button>
        )}
        {progress && (
          <Button appearance="subtle" busy={act.stopping} onClick={act.stop}>
            {texts.stop}
          </Button>
        )}
        {children}
      </div>
    </div>
  );
}

function Elsewhere({ selected, onDrop }: { selected: Selected[]; onDrop: (id: number) => void }) {
  const summary = useRef<HTMLElement>(null);
  const names = selected.map(({ name }) => name).join(texts.listSeparator);
  return (
    <details class="elsewhere">
      <summary ref={summary}>{texts.alsoSelected(names)}</summary>
      <ul>
        {selected.map(({ id, name }) => (
          <li key={id}>
            {name}
            <Button
              appearance="link"
              label={texts.unselectOf(name)}
              onClick={() => {
                summary.current?.focus();
                onDrop(id);
              }}
            >
              {texts.unselect}
            </Button>
          </li>
        ))}
      </ul>
    </details>
  );
}
