//! From a resolv.conf file to the `dns` object of a CNI result, as host-local does it. Pure: the caller reads the file.
//!
//! A line that says nothing is passed over and is never an error: resolvers do the same (resolv.conf(5)).
//! Surprising: `search` lines add up here, where a resolver would heed the last one only; host-local adds them up.

use serde::{Deserialize, Serialize};

/// The `dns` object of a CNI result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses of name servers, in the order in which they are asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Domains that short names are looked up in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Reads the text of a resolv.conf file.
    pub fn from_resolv_conf(text: &str) -> Self {
        let mut dns = Self::default();
        for line in text.lines().map(str::trim) {
            if line.starts_with(['#', ';']) {
                continue;
            }
            let mut words = line.split_whitespace().map(str::to_owned);
            let (Some(keyword), Some(first)) = (words.next(), words.next()) else {
                continue;
            };
            match keyword.as_str() {
                "nameserver" => dns.nameservers.push(first),
                "domain" => dns.domain = first,
                "search" => dns.search.extend(std::iter::once(first).chain(words)),
                "options" => dns.options.extend(std::iter::once(first).chain(words)),
                _ => {}
            }
        }
        dns
    }

    /// True when there is nothing to say.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read_as_host_local_reads_it() {
        let dns = Dns::from_resolv_conf(
            "# comment\n; another\n\nnameserver 10.96.0.10 trailing\n  nameserver\tfd00::a\nnameserver\n\
             domain old\ndomain cluster.local\nsearch a.example b.example\nsearch c.example\n\
             options ndots:5\noptions edns0 rotate\nsortlist 10.0.0.0\n",
        );
        let json = serde_json::to_string(&dns).unwrap();
        assert_eq!(
            json,
            r#"{"nameservers":["10.96.0.10","fd00::a"],"domain":"cluster.local","search":["a.example","b.example","c.example"],"options":["ndots:5","edns0","rotate"]}"#
        );
        assert_eq!(serde_json::from_str::<Dns>(&json).unwrap(), dns);
    }

    #[test]
    fn nothing_to_say_is_an_empty_object() {
        let dns = Dns::from_resolv_conf("\n# nothing\n");
        assert!(dns.is_empty());
        assert_eq!(serde_json::to_string(&dns).unwrap(), "{}");
    }
}
