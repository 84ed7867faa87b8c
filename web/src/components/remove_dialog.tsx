import { useState } from "preact/hooks";
import { addressOf } from "../address.ts";
import { type Api, type Cause, causeOf, type Link } from "../api.ts";
import { texts } from "../texts.ts";
import { Button } from "./button.tsx";
import { Checkbox } from "./checkbox.tsx";
import { Dialog } from "./dialog.tsx";
import { Failure } from "./failure.tsx";

interface RemoveDialogProps {
  api: Api;
  site: string;
  link: Link;
  onClose: () => void;
  onRemoved: (link: Link) => void;
}

export function RemoveDialog({ api, site, link, onClose, onRemoved }: RemoveDialogProps) {
  const [purge, setPurge] = useState(false);
  const [busy, setBusy] = useState(false);
  const [failure, setFailure] = useState<Cause | null>(null);

  const remove = async () => {
    setBusy(true);
    setFailure(null);
    try {
      onRemoved(await api.remove(link.id, purge));
    } catch (error) {
      setFailure(causeOf(error));
      setBusy(false);
    }
  };

  return (
    <Dialog
      title={texts.removeTitle(addressOf(link.instance_url))}
      busy={busy}
      onClose={onClose}
      onSubmit={() => {
        if (!busy) {
          remove();
        }
      }}
      actions={
        <>
          <Button appearance="subtle" disabled={busy} onClick={onClose}>
            {texts.cancel}
          </Button>
          <Button appearance="danger" type="submit" busy={busy}>
            {texts.removeConfirm}
          </Button>
        </>
      }
    >
      <p>{texts.removeText(addressOf(site))}</p>
      <p>{texts.removeUndo}</p>
      <p>{link.can_purge ? texts.removeKeeps : texts.removeKeepsAlways}</p>
      {link.can_purge && (
        <Checkbox label={texts.removePurge} checked={purge} readOnly={busy} onChange={setPurge} />
      )}
      {failure && <Failure cause={failure} />}
    </Dialog>
  );
}
