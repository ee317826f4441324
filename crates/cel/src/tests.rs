//! Expressions with what they give.

use std::collections::BTreeMap;

use pilothouse_apimachinery::json::{Value as Json, json};

use super::*;

fn self_type() -> Type {
    let spec = Type::object(
        "spec",
        [
            ("replicas".to_string(), Type::Int),
            ("minReplicas".to_string(), Type::Int),
            ("name".to_string(), Type::String),
            ("x-prop".to_string(), Type::String),
            ("items".to_string(), Type::list(Type::Int)),
            ("labels".to_string(), Type::map(Type::String)),
            ("any".to_string(), Type::Dyn),
            ("when".to_string(), Type::Timestamp),
            ("ratio".to_string(), Type::Double),
        ],
    );
    Type::object("self", [("spec".to_string(), spec)])
}

fn variables() -> BTreeMap<String, Type> {
    BTreeMap::from([
        ("self".to_string(), self_type()),
        ("authorizer".to_string(), Type::Native("kubernetes.authorization.Authorizer")),
    ])
}

fn object() -> Json {
    json!({"spec": {"replicas": 3, "minReplicas": 1, "name": "abc", "x-prop": "p", "items": [3, 1, 2], "labels": {"a": "1", "b": "2"},
        "any": "text", "when": "2024-02-29T12:30:00Z", "ratio": 2}})
}

struct Yes;

impl Host for Yes {
    fn authorize(&self, check: &Check) -> Option<Answer> {
        let resource = check.about.resource.clone().unwrap_or_default();
        Some(Answer { allowed: check.verb == "create" && resource == "pods", reason: "because".into() })
    }
}

fn run(source: &str, limit: u64) -> Result<String, String> {
    let program = Program::compile(source, &variables())?;
    let object = object();
    let host = Yes;
    let bindings = Bindings::new(&host)
        .with("self", Value::of_json(&object, &self_type()))
        .with("authorizer", Value::native(Native::Authorizer(Authorizer::default())));
    let value = program.evaluate(&bindings, &Budget::new(limit)).map_err(|e| e.to_string())?;
    value.to_json().map(|j| j.to_string())
}

fn all_true(sources: &[&str]) {
    for source in sources {
        assert_eq!(run(source, PER_CALL_LIMIT).as_deref(), Ok("true"), "{source}");
    }
}

#[test]
fn language() {
    all_true(&[
        "self.spec.minReplicas <= self.spec.replicas",
        "self.spec.x__dash__prop == 'p'",
        "has(self.spec.name) && self.spec.name.startsWith('a')",
        "self.spec.items.all(i, i > 0) && self.spec.items.exists_one(i, i == 2)",
        "self.spec.items.map(i, i * 2) == [6, 2, 4] && self.spec.items.filter(i, i > 1).size() == 2",
        "self.spec.labels.exists(k, k == 'a') && 'b' in self.spec.labels && self.spec.labels['b'] == '2'",
        "self.spec.items.all(i, v, i < 3 && v > 0)",
        "self.spec.items.transformList(i, v, v + i) == [3, 2, 4]",
        "self.spec.labels.transformMap(k, v, v + k) == {'a': '1a', 'b': '2b'}",
        "self.spec.labels.transformMapEntry(k, v, {v: k}) == {'1': 'a', '2': 'b'}",
        "1 + 2 * 3 == 7 && 7 / 2 == 3 && 7 % 2 == 1 && -3 + 1 == -2 && 1.5 * 2.0 == 3.0",
        "1 < 1.5 && 1u < 2 && self.spec.ratio == 2.0",
        "true || 1 / 0 == 1",
        "[1, 0].exists(x, 4 / x == 4)",
        "type(self.spec.replicas) == int && type('a') == string && string(5) == '5' && int('7') == 7",
        "self.spec.any == 'text' && !(self.spec.any == 1)",
        "(self.spec.replicas > 2 ? 'many' : 'few') == 'many'",
        "optional.of(1).orValue(2) == 1 && optional.none().orValue(2) == 2",
        "self.?spec.?name.orValue('x') == 'abc' && self.spec.labels[?'z'].orValue('none') == 'none'",
        "optional.of(3).optMap(v, v + 1).value() == 4",
        "size('héllo') == 5 && b'abc' == bytes('abc')",
        "duration('90m') == duration('1h30m') && self.spec.when.getFullYear() == 2024 && self.spec.when.getMonth() == 1",
        "timestamp('2024-01-01T00:00:00Z') < self.spec.when && self.spec.when + duration('1h') > self.spec.when",
        "self.spec.when.getHours('+02:00') == 14",
    ]);
}

#[test]
fn libraries() {
    all_true(&[
        "'a,b'.split(',').join('-') == 'a-b' && 'abc'.substring(1) == 'bc' && 'abc'.charAt(1) == 'b'",
        "'abcabc'.indexOf('c', 3) == 5 && 'abcabc'.lastIndexOf('a') == 3 && ' x '.trim() == 'x'",
        "'hello'.upperAscii() == 'HELLO' && 'aXbX'.replace('X', '-', 1) == 'a-bX'",
        "'%s is %d, %.2f, %x'.format(['a', 5, 1.5, 255]) == 'a is 5, 1.50, ff'",
        "'ab12'.matches('^[a-z]+[0-9]+$') && 'ab12'.find('[0-9]+') == '12' && 'a1b2'.findAll('[0-9]') == ['1', '2']",
        "[1, 2].isSorted() && [1, 2].sum() == 3 && [1, 2].max() == 2 && [5, 6].indexOf(6) == 1",
        "sets.contains([1, 2, 3], [1, 2]) && sets.equivalent([1, 2], [2, 1, 1]) && !sets.intersects([1], [2])",
        "url('https://u@e.com:80/a%20b?k=v&k=w').getHostname() == 'e.com' && url('https://e.com:80/').getPort() == '80'",
        "isURL('https://e.com') && !isURL('../x') && url('https://e.com/?k=v&k=w').getQuery() == {'k': ['v', 'w']}",
        "quantity('1Gi').isGreaterThan(quantity('1G')) && quantity('500m').add(quantity('500m')) == quantity('1')",
        "quantity('50k').asInteger() == 50000 && isQuantity('1.5Gi') && !isQuantity('x')",
        "ip('10.0.0.1').family() == 4 && isIP('::1') && ip('::1').isLoopback() && !isIP('1.2.3') && ip.isCanonical('::1')",
        "cidr('10.0.0.0/8').containsIP('10.1.2.3') && !cidr('10.0.0.0/8').containsCIDR('11.0.0.0/16') && cidr('10.1.0.0/8').masked() == cidr('10.0.0.0/8')",
        "!format.dns1123Label().validate('ok').hasValue() && format.dns1123Label().validate('No').value().size() == 1",
        "format.named('uuid').value().validate('x').hasValue() && !format.named('zzz').hasValue()",
        "semver('1.2.3').isLessThan(semver('1.10.0')) && isSemver('1.0.0-rc.1+b') && !isSemver('v1.0') && isSemver('v1.0', true)",
        "authorizer.group('').resource('pods').namespace('n').check('create').allowed()",
        "!authorizer.path('/healthz').check('get').allowed() && authorizer.group('').resource('pods').check('x').reason() == 'because'",
    ]);
}

#[test]
fn faults_of_types() {
    let e = |source: &str| run(source, PER_CALL_LIMIT).unwrap_err();
    assert_eq!(
        e("self.spec.nope == 1"),
        "ERROR: <input>:1:10: undefined field 'nope'\n | self.spec.nope == 1\n | .........^"
    );
    assert!(
        e("self.spec.replicas == 'x'")
            .contains("found no matching overload for '_==_' applied to '(int, string)'")
    );
    assert!(e("self.spec.name.foo()").contains("undeclared reference to 'foo' (in container '')"));
    assert!(e("other == 1").contains("undeclared reference to 'other' (in container '')"));
    assert!(
        e("self.spec.name.startsWith(1)")
            .contains("found no matching overload for 'startsWith' applied to 'string.(int)'")
    );
    assert!(e("1.all(x, true)").contains("cannot be range of a comprehension"));
    assert!(e("self.spec.").starts_with("ERROR: <input>:1:"), "{}", e("self.spec."));
    assert!(e("1 +").contains("Syntax error"), "{}", e("1 +"));
}

#[test]
fn failures() {
    let e = |source: &str| run(source, PER_CALL_LIMIT).unwrap_err();
    assert_eq!(e("self.spec.labels['z'] == ''"), "no such key: z");
    assert_eq!(e("self.spec.items[7] == 1"), "index out of bounds: 7");
    assert_eq!(e("1 / (self.spec.replicas - 3) == 1"), "division by zero");
    assert_eq!(e("9223372036854775807 + self.spec.replicas > 0"), "integer overflow");
    assert_eq!(e("self.spec.any + 1 == 2"), "no such overload");
    assert_eq!(e("int('x') == 1"), "type conversion error from 'string' to 'int'");
    assert!(e("'a'.matches('(')").starts_with("error parsing regexp: "));
}

#[test]
fn hostile_expressions_end() {
    let nested = "[1,2,3,4,5,6,7,8,9,10].all(a, ".repeat(8) + "true" + &")".repeat(8);
    assert_eq!(run(&nested, PER_CALL_LIMIT).unwrap_err(), "operation cancelled: actual cost limit exceeded");
    let deep = "(".repeat(500) + "1" + &")".repeat(500);
    assert!(run(&deep, PER_CALL_LIMIT).is_err());
    for long in ["1 + ", "-", "!", "a.", "x[", "1 < ", "true ? 1 : ", "f(", "true && "] {
        let started = std::time::Instant::now();
        let _ = run(&(long.repeat(1500) + "1"), PER_CALL_LIMIT);
        assert!(started.elapsed().as_secs() < 20, "{long}");
    }
    let chain = "1 + ".repeat(70) + "1";
    assert_eq!(run(&chain, PER_CALL_LIMIT).as_deref(), Ok("71"));
    let lists = "[".repeat(50) + &"]".repeat(50);
    assert!(run(&lists, PER_CALL_LIMIT).is_ok());
    assert!(run(&"x".repeat(200_000), PER_CALL_LIMIT).unwrap_err().contains("code point size exceeds limit"));
    for odd in [
        "",
        "'",
        "[",
        "{",
        "a[",
        "\"\\",
        "0x",
        "1e",
        "has()",
        "has(1)",
        "[].map()",
        "\u{0}",
        "x.map(1, 2)",
        "a.?b",
        "{1:}",
        "b'\\x",
        "9999999999999999999",
        "a{b:",
        "`",
    ] {
        let _ = run(odd, PER_CALL_LIMIT);
    }
}

#[test]
fn lazy_variables_are_computed_once() {
    let vars = BTreeMap::from([("variables".to_string(), Type::Dyn)]);
    let one = Program::compile("[1, 2, 3].map(x, x * 2)", &vars).unwrap();
    let two = Program::compile("variables.one.size() + 1", &vars).unwrap();
    let lazy = Lazy::new([("one", &one), ("two", &two)]);
    let program = Program::compile("variables.two == 4 && variables.one[0] == 2", &vars).unwrap();
    let host = Nobody;
    let bindings = Bindings::new(&host).with_lazy(&lazy);
    let budget = Budget::new(1000);
    assert_eq!(program.evaluate(&bindings, &budget).unwrap().to_json().unwrap(), json!(true));
    let first = budget.spent();
    program.evaluate(&bindings, &budget).unwrap();
    assert!(budget.spent() - first < first);
}

#[test]
fn the_authorizer_is_asked_in_between() {
    struct Later;
    impl Host for Later {
        fn authorize(&self, _: &Check) -> Option<Answer> {
            None
        }
    }
    let program = Program::compile(
        "authorizer.group('apps').resource('deployments').name('d').check('get').allowed()",
        &variables(),
    )
    .unwrap();
    let host = Later;
    let bindings =
        Bindings::new(&host).with("authorizer", Value::native(Native::Authorizer(Authorizer::default())));
    let Err(Error::Pending(check)) = program.evaluate(&bindings, &Budget::new(PER_CALL_LIMIT)) else {
        panic!()
    };
    assert_eq!(
        (check.verb.as_str(), check.about.group.as_str(), check.about.name.as_str()),
        ("get", "apps", "d")
    );
}
