import { Button } from "./button.tsx";
import { Icon } from "./icon.tsx";

export function BackButton({ children, onClick }: { children: string; onClick: () => void }) {
  return (
    <nav class="back">
      <Button appearance="subtle" onClick={onClick}>
        <Icon name="back" />
        {children}
      </Button>
    </nav>
  );
}
