//! An attachment's record: a small set in the table whose elements it tells of, under a name that follows from the attachment.
//!
//! It is made and deleted in the transaction of the elements, so it cannot tell anything else than what is there. Its comment
//! is the attachment, for people and for GC. The comments of its own elements tell of the elements of shared sets, set and key
//! as `nft` writes them: `host_ports4 tcp . 8080; hairpin4 10.244.1.2 . 10.244.1.2`; and of the attachment's chains: `chain
//! pe_pod0123456789ab`. What cannot be read is of a later version, and is left to that.

use podspan_kernel::IfName;
use podspan_kernel::nft::{Batch, Element, Set, Type, Value};

use super::{Entry, INET, Plan, Wanted, masquerade, policy, ports};

/// What begins the comment that names the link of the attachment, where it has not the record's own name.
const LINK: &str = "link";
/// What begins the word of a chain.
const CHAIN: &str = "chain ";
/// Between what stands in one comment.
const SEPARATOR: &str = "; ";
/// What a comment of an element has room for, in bytes.
const ROOM: usize = 251;
/// A host veth's record has its name, which begins so.
const HOST_VETH: &str = "pod";

/// A record as it was found.
pub(super) struct Record {
    pub name: IfName,
    /// The link that the attachment lives and dies with.
    pub link: Option<IfName>,
    /// What stands in shared sets.
    pub entries: Vec<Entry>,
    /// The attachment's chains.
    pub chains: Vec<String>,
}

/// The record's set.
pub(super) fn set(name: &str) -> Set<'_> {
    Set::of(INET, name, &[Type::Mark])
}

/// The number of the first element of what was added to a record later.
const LATER: u32 = 1 << 31;

/// Makes the record of an attachment, which must not be there yet.
pub(super) fn create(batch: &mut Batch, wanted: &Wanted, plan: &Plan) {
    let mut texts = texts(plan);
    if let Some(link) = wanted.link.as_ref().filter(|link| **link != wanted.record) {
        texts.push(format!("{LINK} {link}"));
    }
    let record = set(wanted.record.as_str()).with_comment(wanted.attachment());
    batch.create_set(&record);
    write(batch, &record, (0, texts));
}

/// Adds to the record of an attachment, whether it has one or not; once.
pub(super) fn extend(batch: &mut Batch, wanted: &Wanted, plan: &Plan) {
    let record = set(wanted.record.as_str()).with_comment(wanted.attachment());
    batch.add_set(&record);
    write(batch, &record, (LATER, texts(plan)));
}

fn texts(plan: &Plan) -> Vec<String> {
    let chains = plan.chains.iter();
    let chains = chains.map(|chain| format!("{CHAIN}{}", chain.name));
    plan.own.iter().map(text).chain(chains).collect()
}

fn write(batch: &mut Batch, record: &Set<'_>, (first, texts): (u32, Vec<String>)) {
    for (number, comment) in (first..).zip(join(texts)) {
        let element = Element::new([Value::Mark(number)]).comment(comment);
        batch.add_element(record, &element);
    }
}

/// As few comments as have room for all.
fn join(texts: Vec<String>) -> Vec<String> {
    let mut comments: Vec<String> = Vec::new();
    for text in texts {
        match comments.last_mut() {
            Some(last) if last.len() + SEPARATOR.len() + text.len() <= ROOM => {
                last.push_str(SEPARATOR);
                last.push_str(&text);
            }
            _ => comments.push(text),
        }
    }
    comments
}

/// Without the quotes of names, which `nft` could not read back inside of a comment.
fn text((set, element): &Entry) -> String {
    let key = Element::new(element.key.clone());
    format!("{} {key}", set.name).replace('"', "")
}

impl Record {
    pub(super) fn read(name: &IfName, elements: &[Element]) -> Self {
        let comments = elements
            .iter()
            .filter_map(|element| element.comment.as_deref());
        let texts = || {
            comments
                .clone()
                .flat_map(|comment| comment.split(SEPARATOR))
        };
        let named = texts().find_map(|text| text.strip_prefix(LINK)?.trim().parse().ok());
        let own = Some(name).filter(|name| name.as_str().starts_with(HOST_VETH));
        Self {
            name: name.clone(),
            link: named.or(own.cloned()),
            entries: texts()
                .filter_map(entry)
                .map(|(set, element)| (set, element.comment(name.as_str())))
                .collect(),
            chains: texts()
                .filter_map(|text| text.strip_prefix(CHAIN))
                .filter(|chain| policy::veth_of(chain).is_some())
                .map(str::to_owned)
                .collect(),
        }
    }
}

/// The element that a comment names.
fn entry(text: &str) -> Option<Entry> {
    let (name, key) = text.split_once(' ')?;
    let all = masquerade::SETS.iter().chain(&ports::SETS);
    let set = { all.chain(&policy::SETS) }.find(|set| set.name == name)?;
    let fields: Vec<_> = key.split(" . ").collect();
    let values: Option<Vec<Value>> = (set.key.iter().zip(&fields))
        .map(|(field, text)| field.parse(text))
        .collect();
    let values =
        values.filter(|values| fields.len() == set.key.len() && values.len() == fields.len())?;
    Some((set, Element::new(values)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_nothing_else() {
        let name: IfName = "pod0123456789ab".parse().unwrap();
        let comments = |texts: &[&str]| -> Vec<Element> {
            let element = |text: &&str| Element::new([Value::Mark(0)]).comment(*text);
            texts.iter().map(element).collect()
        };
        let texts = [
            "masquerade4 10.244.1.2",
            "host_ports4 tcp . 8080",
            "host_ip_ports6 fd00::1 . sctp . 9",
        ];
        let record = Record::read(&name, &comments(&texts));
        let again: Vec<_> = record.entries.iter().map(text).collect();
        assert_eq!(
            (again.as_slice(), record.link.as_ref()),
            (&texts.map(str::to_owned)[..], Some(&name))
        );

        let joined = join(texts.map(str::to_owned).to_vec());
        assert_eq!(joined.len(), 1);
        let joined: Vec<&str> = joined.iter().map(String::as_str).collect();
        let of_joined = Record::read(&name, &comments(&joined)).entries;
        assert_eq!(of_joined, record.entries);
        let many = join(vec!["x".repeat(125); 3]);
        assert_eq!(
            many.iter().map(String::len).collect::<Vec<_>>(),
            [125, 125, 125]
        );
        assert_eq!(join(vec!["x".repeat(124); 3])[0].len(), 250);

        let strange = [
            "",
            "x",
            "masquerade4",
            "masquerade4 fd00::1",
            "host_ports4 tcp",
            "host_ports4 tcp . 8080 . 1",
            "bridges_of_tomorrow 7",
            "port_mac pod0 . 0a:00:00:00:00:01",
        ];
        assert!(Record::read(&name, &comments(&strange)).entries.is_empty());

        let mapped: IfName = "map0123456789ab".parse().unwrap();
        let link = |texts| Record::read(&mapped, &comments(texts)).link;
        assert_eq!(link(&["link veth7"]), Some("veth7".parse().unwrap()));
        assert_eq!(link(&[]), None, "nobody knows");
    }
}
