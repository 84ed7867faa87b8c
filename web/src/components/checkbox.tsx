import { useEffect, useId, useRef } from "preact/hooks";

interface CheckboxProps {
  label: string;
  checked: boolean;
  indeterminate?: boolean;
  disabled?: boolean;
  /** Keeps the focus, changes no more. */
  readOnly?: boolean;
  onChange: (checked: boolean) => void;
}

export function Checkbox({
  label,
  checked,
  indeterminate = false,
  disabled = false,
  readOnly = false,
  onChange,
}: CheckboxProps) {
  const input = useRef<HTMLInputElement>(null);
  const id = useId();
  useEffect(() => {
    if (input.current) {
      input.current.indeterminate = indeterminate;
    }
  }, [indeterminate]);
  return (
    <span class="checkbox">
      <input
        ref={input}
        id={id}
        type="checkbox"
        checked={checked}
        disabled={disabled}
        aria-readonly={readOnly || undefined}
        onClick={(event) => readOnly && event.preventDefault()}
        onChange={(event) => onChange(event.currentTarget.checked)}
      />
      <label for={id}>{label}</label>
    </span>
  );
}
