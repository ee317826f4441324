//! Function libraries: CEL's extensions that Kubernetes has, and its own
//! (<https://kubernetes.io/docs/reference/using-api/cel/#cel-options-language-features-and-libraries>).

pub mod authorizer;
pub mod format;
pub mod lists;
pub mod net;
pub mod quantity;
pub mod semver;
pub mod strings;
pub mod url;

use crate::eval::Evaluated;
use crate::value::{Native, Value};
use authorizer::Host;

/// Calls a function of a library; none where no library has it for these arguments.
pub fn call<'a>(name: &str, member: bool, args: &[Value<'a>], host: &dyn Host) -> Option<Evaluated<'a>> {
    if !member {
        return lists::global(name, args)
            .or_else(|| url::global(name, args))
            .or_else(|| quantity::global(name, args))
            .or_else(|| net::global(name, args))
            .or_else(|| semver::global(name, args))
            .or_else(|| format::global(name, args))
            .or_else(|| strings::global(name, args));
    }
    let (Value::Native(native), rest) = args.split_first()? else { return None };
    match &**native {
        Native::Url(u) => url::member(name, u),
        Native::Quantity(q) => quantity::member(name, q, rest),
        Native::Ip(ip) => net::of_ip(name, *ip),
        Native::Cidr(ip, bits) => net::of_cidr(name, *ip, *bits, rest),
        Native::Semver(v) => semver::member(name, v, rest),
        Native::Format(f) => format::member(name, f, rest),
        Native::Authorizer(a) => authorizer::member(name, a, rest, host),
        Native::Decision(allowed, reason) => authorizer::of_decision(name, *allowed, reason),
    }
}
