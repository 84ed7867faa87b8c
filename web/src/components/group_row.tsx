import type { ComponentChildren } from "preact";
import { useId } from "preact/hooks";

interface GroupRowProps {
  name: string;
  description: string | null;
  aside: ComponentChildren;
  /** Left out where nothing can be selected. */
  selection?: { checked: boolean; disabled: boolean; onChange: (checked: boolean) => void };
}

export function GroupRow({ name, description, aside, selection }: GroupRowProps) {
  const id = useId();
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
      <div class="row-body">
        {selection ? (
          <label class="row-title" for={id}>
            {name}
          </label>
        ) : (
          <p class="row-title">{name}</p>
        )}
        {description && <p class="row-text">{description}</p>}
      </div>
      {aside && <span class="row-aside">{aside}</span>}
    </li>
  );
}
