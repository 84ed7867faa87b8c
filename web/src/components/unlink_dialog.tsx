import { texts } from "../texts.ts";
import { Button } from "./button.tsx";
import { Dialog } from "./dialog.tsx";

interface UnlinkDialogProps {
  names: string[];
  onClose: () => void;
  onConfirm: () => void;
}

const NAMES_SHOWN = 8;

export function UnlinkDialog({ names, onClose, onConfirm }: UnlinkDialogProps) {
  const more = names.length - NAMES_SHOWN;
  return (
    <Dialog
      title={texts.unlinkTitle(names.length)}
      onClose={onClose}
      onSubmit={onConfirm}
      actions={
        <>
          <Button appearance="subtle" onClick={onClose}>
            {texts.cancel}
          </Button>
          <Button appearance="danger" type="submit">
            {texts.unlink(names.length)}
          </Button>
        </>
      }
    >
      <p>{texts.unlinkText(names.length)}</p>
      <ul class="names">
        {names.slice(0, NAMES_SHOWN).map((name) => (
          <li key={name}>{name}</li>
        ))}
      </ul>
      {more > 0 && <p>{texts.andMore(more)}</p>}
    </Dialog>
  );
}
