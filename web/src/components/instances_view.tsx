import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { addressOf } from "../address.ts";
import type { Api, Cause, Link, Links } from "../api.ts";
import type { Boot } from "../boot.ts";
import type { KnownGroups } from "../known_groups.ts";
import { texts } from "../texts.ts";
import { AddDialog } from "./add_dialog.tsx";
import { Button } from "./button.tsx";
import { Failure } from "./failure.tsx";
import { FirstUse } from "./first_use.tsx";
import { Heading } from "./heading.tsx";
import { InstanceCard } from "./instance_card.tsx";
import { LacksNote } from "./lacks_note.tsx";
import { RemoveDialog } from "./remove_dialog.tsx";

interface InstancesViewProps {
  api: Api;
  boot: Boot;
  answer: Links;
  known: KnownGroups;
  takeFocus: boolean;
  onChange: (link: Link) => void;
  onSay: (announcement: string) => void;
  /** Why nothing can be changed. */
  readOnly: ComponentChildren;
  onRefresh: () => void;
  onManageGroups: (linkId: string) => void;
  onLinkGroups: (linkId: string) => void;
}

export function InstancesView({
  api,
  boot,
  answer,
  known,
  takeFocus,
  onChange,
  onSay,
  readOnly,
  onRefresh,
  onManageGroups,
  onLinkGroups,
}: InstancesViewProps) {
  const [adding, setAdding] = useState(false);
  const [removed, setRemoved] = useState<string | null>(null);
  const [removing, setRemoving] = useState<Link | null>(null);
  const [tooLate, setTooLate] = useState<Cause | null>(null);
  const { site, links, may_change: mayChange } = answer;

  const change = (changed: Link) => {
    setTooLate(null);
    setRemoved(null);
    onChange(changed);
  };

  return (
    <>
      <header class="page-header">
        <div class="page-header-titles">
          <Heading takeFocus={takeFocus}>{texts.appName}</Heading>
          <p class="subtle">
            {links.length > 0
              ? texts.instancesIntro(addressOf(site))
              : texts.ofSite(addressOf(site))}
          </p>
        </div>
        {mayChange && links.length > 0 && (
          <Button appearance="primary" onClick={() => setAdding(true)}>
            {texts.addInstance}
          </Button>
        )}
      </header>
      {readOnly}
      {tooLate && <Failure cause={tooLate} />}
      {links.length === 0 ? (
        <FirstUse boot={boot} onAdd={mayChange ? () => setAdding(true) : null} />
      ) : (
        <section aria-label={texts.instancesHeading}>
          <ul class="cards">
            {links.map((link) => (
              <InstanceCard
                key={link.id}
                api={api}
                link={link}
                known={known}
                mayChange={mayChange}
                focusUndo={removed === link.id}
                onChange={change}
                onSay={onSay}
                onTooLate={(cause) => {
                  const message = texts.withDetail(addressOf(link.instance_url), cause.message);
                  setTooLate({ ...cause, message });
                  onRefresh();
                }}
                onRemove={() => setRemoving(link)}
                onManageGroups={() => onManageGroups(link.id)}
                onLinkGroups={() => onLinkGroups(link.id)}
              />
            ))}
          </ul>
        </section>
      )}
      <LacksNote lacks={boot.lacks} />
      {adding && (
        <AddDialog
          api={api}
          boot={boot}
          onClose={() => setAdding(false)}
          onAdded={(link) => {
            setAdding(false);
            change(link);
            onSay(texts.added(addressOf(link.instance_url)));
          }}
        />
      )}
      {removing && (
        <RemoveDialog
          api={api}
          site={site}
          link={removing}
          onClose={() => setRemoving(null)}
          onRemoved={(link) => {
            setRemoving(null);
            change(link);
            setRemoved(link.id);
          }}
        />
      )}
    </>
  );
}
