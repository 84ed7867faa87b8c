import type { ComponentChildren } from "preact";
import { useId } from "preact/hooks";
import { Icon } from "./icon.tsx";

interface GroupRowProps {
  fullName: string;
  /** The last part of the full name, where a list is in the order of these. */
  leafName?: string;
  description: string | null;
  aside: ComponentChildren;
  /** Left out where nothing can be selected. */
  selection?: { checked: boolean; disabled: boolean; onChange: (checked: boolean) => void };
}

const SEPARATOR = " / ";

export function GroupRow({ fullName, leafName, description, aside, selection }: GroupRowProps) {
  const id = useId();
  const title = <Name fullName={fullName} leafName={leafName ?? fullName} />;
  return (
    <li class="row">
      {selection && (
        <input
          id={id}
          type="checkbox"
          checked={selection.checked}
          disabled={selection.disabled}
          onChange={(event) => selection.onChange(event.currentTarget.checked)}
        />
      )}
      <div class="row-content">
        <div class="row-body">
          {selection ? (
            <label class="row-title" for={id}>
              {title}
            </label>
          ) : (
            <p class="row-title">{title}</p>
          )}
          {description && <p class="row-text">{description}</p>}
        </div>
        {aside && <span class="row-aside">{aside}</span>}
      </div>
    </li>
  );
}

// Read out in full and in order; the style puts the parents below.
function Name({ fullName, leafName }: { fullName: string; leafName: string }) {
  const parents = fullName.endsWith(SEPARATOR + leafName)
    ? fullName.slice(0, -SEPARATOR.length - leafName.length)
    : null;
  if (parents === null) {
    return <>{fullName}</>;
  }
  return (
    <>
      <span class="row-parents">
        <Icon name="folder" />
        {parents}
        <span class="assistive">{SEPARATOR}</span>
      </span>
      <span class="row-leaf">{leafName}</span>
    </>
  );
}
