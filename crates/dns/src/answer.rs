//! From a question and what the zone knows to a DNS message: a plain function.

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use rand::seq::SliceRandom;

use crate::zone::{Data, Found, Zone};

/// As many aliases are followed within the zone.
const MAX_ALIASES: usize = 8;

/// What to do with a question.
pub enum Outcome {
    /// Send this.
    Answer(Box<Message>),
    /// Ask another server.
    Forward,
}

/// Decides about a query. Answers live for `ttl` seconds.
pub fn answer(zone: &Zone, query: &Message, ttl: u32) -> Outcome {
    let mut response = Message::response(query.metadata.id, query.metadata.op_code);
    response.metadata.recursion_desired = query.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.add_queries(query.queries.clone());
    if query.metadata.message_type != MessageType::Query {
        return refuse(response, ResponseCode::FormErr);
    }
    if query.metadata.op_code != OpCode::Query {
        return refuse(response, ResponseCode::NotImp);
    }
    let [question] = query.queries.as_slice() else { return refuse(response, ResponseCode::FormErr) };
    if question.query_class() != DNSClass::IN {
        return refuse(response, ResponseCode::Refused);
    }
    let name = text(question.name());
    let wanted = question.query_type();
    let data = match zone.find(&name) {
        Found::Foreign => return Outcome::Forward,
        Found::Nothing => {
            response.metadata.authoritative = true;
            response.metadata.response_code = ResponseCode::NXDomain;
            response.add_authorities(soa(zone, ttl));
            return Outcome::Answer(Box::new(response));
        }
        Found::Here(data) => data,
    };
    response.metadata.authoritative = true;
    let (mut owner, mut data) = (question.name().clone(), data);
    for _ in 0..MAX_ALIASES {
        let alias = data.iter().find_map(|d| match d {
            Data::Alias(target) if wanted != RecordType::CNAME => Some(target.clone()),
            _ => None,
        });
        let Some(target) = alias else { break };
        let Some(target_name) = fqdn(&target) else { break };
        response.add_answer(Record::from_rdata(owner, ttl, RData::CNAME(CNAME(target_name.clone()))));
        owner = target_name;
        data = match zone.find(&target) {
            Found::Here(d) => d,
            // The client asks for the rest of the chain itself.
            _ => Vec::new(),
        };
    }
    let weight = u16::try_from(100 / data.len().max(1)).unwrap_or(1).max(1);
    let mut records: Vec<Record> = data
        .iter()
        .filter_map(|d| rdata(d, wanted, weight))
        .map(|r| Record::from_rdata(owner.clone(), ttl, r))
        .collect();
    // Clients take the first: each pod behind a name gets its share.
    records.shuffle(&mut rand::rng());
    if wanted == RecordType::SOA && name == zone.domain() {
        records.extend(soa(zone, ttl));
    }
    for d in &data {
        let Data::Service(_, target) = d else { continue };
        if wanted != RecordType::SRV {
            continue;
        }
        if let (Found::Here(addresses), Some(target_name)) = (zone.find(target), fqdn(target)) {
            for a in addresses.iter().filter_map(|a| match a {
                Data::Address(std::net::IpAddr::V4(ip)) => Some(RData::A(A(*ip))),
                Data::Address(std::net::IpAddr::V6(ip)) => Some(RData::AAAA(AAAA(*ip))),
                _ => None,
            }) {
                response.add_additional(Record::from_rdata(target_name.clone(), ttl, a));
            }
        }
    }
    if records.is_empty() && response.answers.is_empty() {
        response.add_authorities(soa(zone, ttl));
    }
    response.add_answers(records);
    Outcome::Answer(Box::new(response))
}

fn refuse(mut response: Message, code: ResponseCode) -> Outcome {
    response.metadata.response_code = code;
    Outcome::Answer(Box::new(response))
}

/// The answer where no other server can be asked.
pub fn failure(query: &Message) -> Message {
    let mut response = Message::response(query.metadata.id, query.metadata.op_code);
    response.metadata.recursion_desired = query.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.response_code = ResponseCode::ServFail;
    response.add_queries(query.queries.clone());
    response
}

/// A name in lower case, without the dot at its end.
fn text(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_lowercase()
}

fn fqdn(name: &str) -> Option<Name> {
    Name::from_ascii(format!("{name}.")).ok()
}

fn rdata(data: &Data, wanted: RecordType, weight: u16) -> Option<RData> {
    let any = wanted == RecordType::ANY;
    match data {
        Data::Address(std::net::IpAddr::V4(ip)) if any || wanted == RecordType::A => Some(RData::A(A(*ip))),
        Data::Address(std::net::IpAddr::V6(ip)) if any || wanted == RecordType::AAAA => {
            Some(RData::AAAA(AAAA(*ip)))
        }
        Data::Service(port, target) if any || wanted == RecordType::SRV => {
            Some(RData::SRV(SRV::new(0, weight, *port, fqdn(target)?)))
        }
        Data::Pointer(target) if any || wanted == RecordType::PTR => Some(RData::PTR(PTR(fqdn(target)?))),
        Data::Alias(target) if any || wanted == RecordType::CNAME => Some(RData::CNAME(CNAME(fqdn(target)?))),
        Data::Text(t) if any || wanted == RecordType::TXT => Some(RData::TXT(TXT::new(vec![t.clone()]))),
        _ => None,
    }
}

fn soa(zone: &Zone, ttl: u32) -> Option<Record> {
    let domain = zone.domain();
    let server = fqdn(&format!("ns.dns.{domain}"))?;
    let mail = fqdn(&format!("hostmaster.{domain}"))?;
    // The serial moves with time; nobody transfers this zone.
    let serial =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let serial = u32::try_from(serial).unwrap_or(u32::MAX);
    Some(Record::from_rdata(
        fqdn(domain)?,
        ttl,
        RData::SOA(SOA::new(server, mail, serial, 7200, 1800, 86_400, ttl)),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zone::tests::zone;
    use hickory_proto::op::Query;

    fn ask(name: &str, kind: RecordType) -> Option<Message> {
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        match answer(&zone(), &query, 5) {
            Outcome::Answer(m) => Some(*m),
            Outcome::Forward => None,
        }
    }

    #[test]
    fn answers_in_any_case_of_letters() {
        let m = ask("WEB-0.nginx.Default.svc.cluster.local.", RecordType::A).unwrap();
        assert_eq!((m.metadata.id, m.metadata.response_code), (7, ResponseCode::NoError));
        assert_eq!(m.answers[0].data, RData::A(A::new(10, 244, 0, 7)));
        assert!(m.metadata.authoritative);
    }

    #[test]
    fn nothing_of_a_kind_is_not_nothing_at_all() {
        let m = ask("kube-dns.kube-system.svc.cluster.local.", RecordType::AAAA).unwrap();
        assert_eq!(
            (m.metadata.response_code, m.answers.len(), m.authorities.len()),
            (ResponseCode::NoError, 0, 1)
        );
        let m = ask("nope.default.svc.cluster.local.", RecordType::A).unwrap();
        assert_eq!((m.metadata.response_code, m.authorities.len()), (ResponseCode::NXDomain, 1));
        assert!(ask("example.com.", RecordType::A).is_none());
    }

    #[test]
    fn services_bring_addresses_along_and_aliases_lead_on() {
        let m = ask("_web._tcp.nginx.default.svc.cluster.local.", RecordType::SRV).unwrap();
        assert_eq!((m.answers.len(), m.additionals.len()), (2, 2));
        let m = ask("ext.default.svc.cluster.local.", RecordType::A).unwrap();
        assert_eq!(m.answers[0].data, RData::CNAME(CNAME(Name::from_ascii("example.com.").unwrap())));
    }

    #[test]
    fn refuses_what_is_no_question() {
        let query = Message::new(7, MessageType::Query, OpCode::Query);
        let Outcome::Answer(m) = answer(&zone(), &query, 5) else { panic!() };
        assert_eq!(m.metadata.response_code, ResponseCode::FormErr);
    }
}
