//! The key `policy`, and who the runtime says that the pod is (`K8S_POD_…` of `CNI_ARGS`).
//!
//! Without the key there is nothing of all this. A container that is no pod of Kubernetes is nobody's subject.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::error::Error;
use crate::filter::policy::PodName;
use crate::requested::cni_args;

/// The longest name of a pod, and of a namespace or a number, in bytes (RFC 1123).
const NAME_MAX: usize = 253;
const WORD_MAX: usize = 63;
/// The longest wait in milliseconds.
const WAIT_MAX: u64 = 60_000;

/// What is configured, and of whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPolicy {
    /// How long ADD waits until the pod's policy is in force.
    pub wait: Duration,
    /// What a pod is that the agent does not know yet.
    pub when_unknown: WhenUnknown,
    /// The pod; none for a container that is nobody's.
    pub pod: Option<PodName>,
}

/// What a pod is whose policy nobody knows yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WhenUnknown {
    /// Only the node reaches it, and it reaches the node only.
    Closed,
    /// Everything passes.
    Open,
}

/// The keys as they stand.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Raw {
    wait_milliseconds: Option<i64>,
    when_unknown: Option<WhenUnknown>,
}

impl PodPolicy {
    /// How long ADD waits where nothing is said.
    pub const WAIT: Duration = Duration::from_secs(2);

    /// Reads the key; none where it is absent.
    ///
    /// # Errors
    /// [`Error::Config`] with key and value; [`Error::Environment`] for names that no pod can have.
    pub fn parse(key: Option<&Value>, args: Option<&str>) -> Result<Option<Self>, Error> {
        let Some(value) = key.filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        let raw: Raw = serde_path_to_error::deserialize(value).map_err(|error| {
            let path = match error.path().to_string() {
                whole if whole == "." => "policy".to_owned(),
                path => format!("policy.{path}"),
            };
            Error::Config(format!("{path}: {}", error.inner()))
        })?;
        let wait = match raw.wait_milliseconds {
            None => Self::WAIT,
            Some(number) => u64::try_from(number)
                .ok()
                .filter(|number| *number <= WAIT_MAX)
                .map(Duration::from_millis)
                .ok_or_else(|| {
                    Error::Config(format!(
                        "policy.waitMilliseconds is {number}; it must be from 0 to {WAIT_MAX}"
                    ))
                })?,
        };
        Ok(Some(Self {
            wait,
            when_unknown: raw.when_unknown.unwrap_or(WhenUnknown::Closed),
            pod: pod_name(args.unwrap_or_default())?,
        }))
    }

    /// True for a pod that passes nothing until the agent knows it.
    pub fn begins_closed(&self) -> bool {
        self.pod.is_some() && self.when_unknown == WhenUnknown::Closed
    }
}

/// The pod that `CNI_ARGS` names, if it names one.
fn pod_name(args: &str) -> Result<Option<PodName>, Error> {
    let args = cni_args(args)?;
    let named = |key: &str, longest| {
        let pair = { args.iter() }.find(|(known, value)| *known == key && !value.is_empty());
        let Some((_, value)) = pair else {
            return Ok(None);
        };
        let is_name = value.len() <= longest && { value.bytes() }
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        match is_name {
            true => Ok(Some((*value).to_owned())),
            false => Err(Error::Environment(format!(
                "CNI_ARGS: {key} is {value:?}; it must be letters, digits, '-', '.' and '_', at most {longest}"
            ))),
        }
    };
    let namespace = named("K8S_POD_NAMESPACE", WORD_MAX)?;
    let name = named("K8S_POD_NAME", NAME_MAX)?;
    let uid = named("K8S_POD_UID", WORD_MAX)?;
    Ok(namespace.zip(name).map(|(namespace, name)| PodName {
        namespace,
        name,
        uid,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ARGS: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=0f3";

    fn parse(value: Value, args: &str) -> Result<Option<PodPolicy>, String> {
        PodPolicy::parse(Some(&value), Some(args))
            .map_err(|error| format!("{} {error}", error.code()))
    }

    #[test]
    fn absent_it_is_nothing_and_empty_it_has_its_defaults() {
        assert!(matches!(PodPolicy::parse(None, Some(ARGS)), Ok(None)));
        assert_eq!(parse(Value::Null, ARGS), Ok(None));
        let policy = parse(json!({}), ARGS).unwrap().unwrap();
        assert_eq!(policy.wait, Duration::from_secs(2));
        assert!(policy.begins_closed());
        let pod = policy.pod.unwrap();
        let texts = (
            pod.namespace.as_str(),
            pod.name.as_str(),
            pod.uid.as_deref(),
        );
        assert_eq!(texts, ("shop", "web-0", Some("0f3")));
    }

    #[test]
    fn a_container_without_names_is_open_and_so_is_an_unknown_pod_where_one_wants_it() {
        let is_closed = |value, args| parse(value, args).unwrap().unwrap().begins_closed();
        let open = json!({"waitMilliseconds": 0, "whenUnknown": "open"});
        assert!(!is_closed(open, ARGS));
        for args in [
            "",
            "K8S_POD_NAME=web-0",
            "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=",
        ] {
            assert!(!is_closed(json!({}), args), "{args}");
        }
        assert!(is_closed(json!({"whenUnknown": "closed"}), ARGS));
    }

    #[test]
    fn what_cannot_be_is_told_with_key_and_value() {
        for (value, told) in [
            (
                json!({"waitMilliseconds": 60001}),
                "7 policy.waitMilliseconds is 60001; it must be from 0 to 60000",
            ),
            (
                json!({"waitMilliseconds": -1}),
                "7 policy.waitMilliseconds is -1; it must be from 0 to 60000",
            ),
            (
                json!({"waitMilliseconds": "2s"}),
                "7 policy.waitMilliseconds: invalid type: string \"2s\"",
            ),
            (
                json!({"whenUnknown": "shut"}),
                "7 policy.whenUnknown: unknown variant `shut`, expected `closed` or `open`",
            ),
            (
                json!({"wait": 1}),
                "7 policy.wait: unknown field `wait`, expected `waitMilliseconds` or `whenUnknown`",
            ),
            (json!(true), "7 policy: invalid type: boolean `true`"),
        ] {
            let error = parse(value, ARGS).unwrap_err();
            assert!(error.starts_with(told), "{error}");
        }
        let error = parse(json!({}), "K8S_POD_NAMESPACE=a b;K8S_POD_NAME=c").unwrap_err();
        assert!(
            error.starts_with("4 CNI_ARGS: K8S_POD_NAMESPACE is \"a b\"; "),
            "{error}"
        );
    }
}
