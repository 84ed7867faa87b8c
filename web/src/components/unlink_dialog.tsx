import type { LinkedGroup } from "../api.ts";
import { texts } from "../texts.ts";
import { Button } from "./button.tsx";
import { Dialog } from "./dialog.tsx";

interface UnlinkDialogProps {
  groups: LinkedGroup[];
  onClose: () => void;
  onConfirm: () => void;
}

const NAMES_SHOWN = 8;

export function UnlinkDialog({ groups, onClose, onConfirm }: UnlinkDialogProps) {
  const more = groups.length - NAMES_SHOWN;
  return (
    <Dialog
      title={texts.unlinkTitle(groups.length)}
      onClose={onClose}
      onSubmit={onConfirm}
      actions={
        <>
          <Button appearance="subtle" onClick={onClose}>
            {texts.cancel}
          </Button>
          <Button appearance="danger" type="submit">
            {texts.unlink(groups.length)}
          </Button>
        </>
      }
    >
      <p>{texts.unlinkText(groups.length)}</p>
      <ul class="names">
        {groups.slice(0, NAMES_SHOWN).map(({ id, full_name }) => (
          <li key={id}>{full_name}</li>
        ))}
      </ul>
      {more > 0 && <p>{texts.andMore(more)}</p>}
    </Dialog>
  );
}
