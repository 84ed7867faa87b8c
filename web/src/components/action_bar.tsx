import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { texts } from "../texts.ts";
import { Button } from "./button.tsx";
import { Progress } from "./progress.tsx";

interface ActionBarProps {
  selected: number;
  /** Names of the selected that are not in sight. */
  elsewhere: string[];
  /** How far the act on them is, while there is one. */
  progress: { text: string; done: number; total: number } | null;
  onClear: () => void;
  onStop: () => Promise<void>;
  /** What can be done with the selected. */
  children: ComponentChildren;
}

/** What is selected, wherever it is in the list. */
export function ActionBar({
  selected,
  elsewhere,
  progress,
  onClear,
  onStop,
  children,
}: ActionBarProps) {
  return (
    <div class="action-bar">
      <div class="action-bar-text">
        {progress ? (
          <Progress {...progress} />
        ) : (
          <p role="status">{texts.selectedCount(selected)}</p>
        )}
        {!progress && elsewhere.length > 0 && (
          <p class="action-bar-names">{texts.alsoSelected(elsewhere.join(texts.listSeparator))}</p>
        )}
      </div>
      <div class="button-row">
        {selected > 0 && !progress && (
          <Button appearance="subtle" onClick={onClear}>
            {texts.clearSelection}
          </Button>
        )}
        {progress && <StopButton onStop={onStop} />}
        {children}
      </div>
    </div>
  );
}

function StopButton({ onStop }: { onStop: () => Promise<void> }) {
  const [stopping, setStopping] = useState(false);
  return (
    <Button
      appearance="subtle"
      busy={stopping}
      onClick={() => {
        setStopping(true);
        onStop();
      }}
    >
      {texts.stop}
    </Button>
  );
}
