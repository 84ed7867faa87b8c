"""What no schema asks of the rendered chart: one relay, Pod Security's "restricted", no way to the admin port."""

import sys
import tomllib

import yaml

documents = [d for d in yaml.safe_load_all(sys.stdin) if d]
kinds = {}
for document in documents:
    kinds.setdefault(document["kind"], []).append(document)


def want(what, holds):
    if not holds:
        sys.exit(f"the chart: {what}")


with open("../Cargo.toml", "rb") as file:
    version = tomllib.load(file)["package"]["version"]

[stateful] = kinds["StatefulSet"]
pod = stateful["spec"]["template"]["spec"]
[container] = pod["containers"]
want("exactly one relay", stateful["spec"]["replicas"] == 1)
want("the image of this version", container["image"].endswith(f":{version}"))

# https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
security = container["securityContext"]
want("not as root", pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0)
want("a seccomp profile", pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault")
want("no escalation", security["allowPrivilegeEscalation"] is False)
want("no capability", security["capabilities"] == {"drop": ["ALL"]})
want("a read-only root", security["readOnlyRootFilesystem"] is True)
want("no host namespaces", not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")))
allowed = {"configMap", "secret", "persistentVolumeClaim"}
want("volumes of harmless kinds", all(set(v) - {"name"} <= allowed for v in pod["volumes"]))
want("no token of the cluster's", pod["automountServiceAccountToken"] is False)

for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
    want(f"{probe} at the admin port", container[probe]["httpGet"]["port"] == "admin")
want("memory is limited", "memory" in container["resources"]["limits"])

for ingress in kinds.get("Ingress", []):
    for rule in ingress["spec"]["rules"]:
        paths = {p["path"]: p["backend"]["service"]["port"]["name"] for p in rule["http"]["paths"]}
        want("two paths to the public port", paths == {"/-/jira_connect": "http", "/rest": "http"})
[policy] = kinds["NetworkPolicy"]
for rule in policy["spec"]["ingress"]:
    ports = [port["port"] for port in rule["ports"]]
    want("the admin port for named peers only", ports == ["public"] or rule.get("from"))

if len(sys.argv) > 1:
    [config] = kinds["ConfigMap"]
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        file.write(config["data"]["proxy.toml"])
