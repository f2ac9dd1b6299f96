package differential

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
)

// A generator makes statements. Most of them succeed, because the generator knows the
// schema.
type generator struct {
	*rand.Rand
	features features
	schema   *schema

	// The state of the statement that is being made.
	values []any // of its parameters, also of those that were left out again
	style  paramStyle
	sealed bool // the text becomes a part of the schema: no parameters, no non-deterministic functions
}

// features switches parts of the grammar on.
type features struct {
	nondeterministic bool // random() and 'now', which differ between two databases
	unordered        bool // results that depend on the query plan
	ownFile          bool // what depends on the layout of the database file
	counters         bool // changes() and last_insert_rowid()
	temp             bool
	settings         bool // PRAGMAs that change the meaning of statements
}

type paramStyle int

const (
	noParams paramStyle = iota
	plainParams
	numberedParams
	namedParams
)

func (g *generator) chance(percent int) bool { return g.IntN(100) < percent }

func (g *generator) pick(options ...string) string { return options[g.IntN(len(options))] }

func (g *generator) small() string { return fmt.Sprint(1 + g.IntN(9)) }

// maybe returns text with this chance in percent, and "" otherwise.
func (g *generator) maybe(percent int, text string) string {
	if g.chance(percent) {
		return text
	}
	return ""
}

// list returns n pieces, joined.
func list(n int, piece func(i int) string) string {
	all := make([]string, n)
	for i := range all {
		all[i] = piece(i)
	}
	return strings.Join(all, ", ")
}

// begin starts a statement with this style of parameters.
func (g *generator) begin(style paramStyle) { g.values, g.style, g.sealed = nil, style, false }

func (g *generator) anyStyle() paramStyle { return paramStyle(g.IntN(4)) }

// within makes a text that becomes a part of the schema.
func (g *generator) within(text func() string) string {
	before := g.sealed
	g.sealed = true
	defer func() { g.sealed = before }()
	return text()
}

// quote quotes a name if SQL requires it.
func quote(name string) string {
	plain := name != ""
	for i, c := range name {
		if c != '_' && (c < 'a' || c > 'z') && (i == 0 || c < '0' || c > '9') {
			plain = false
		}
	}
	if plain && !keywords[name] {
		return name
	}
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

var keywords = map[string]bool{"select": true, "order": true, "group": true, "index": true, "table": true, "values": true, "default": true}

// A scope has the tables whose columns an expression can name.
type scope []source

// A source is a table in a FROM clause.
type source struct {
	alias   string
	columns []column
	rowid   bool
	full    bool // an FTS5 table: MATCH works
}

func (g *generator) column(s scope) string {
	if len(s) == 0 {
		return g.literal()
	}
	from := s[g.IntN(len(s))]
	if from.rowid && g.chance(10) {
		return quote(from.alias) + ".rowid"
	}
	if len(from.columns) == 0 {
		return g.literal()
	}
	c := quote(from.columns[g.IntN(len(from.columns))].name)
	if len(s) == 1 && g.chance(50) {
		return c
	}
	return quote(from.alias) + "." + c
}

var literals = []string{
	"0", "1", "2", "3", "-1", "7", "10", "100", "'a'", "'b'", "'A'", "'abc'", "'abc '", "''", "'1'", "'12abc'", "' 5'", "'0x10'", "NULL", "NULL",
	"1.0", "1.5", "-0.0", "0.1", "1e300", "-1e-300", "9e999", "-9e999", "9223372036854775000", "-9223372036854775808", "9223372036854775808", "4611686018427387904", "4294967296", "2147483648",
	"x''", "x'00'", "x'616263'", "x'ff'", "zeroblob(3)", "'ä'", "'Ä'", "'😀'", "'2024-02-29'", "'2024-02-29 12:34:56.789'", "'12:00'", "2460000.5", "1700000000",
	"TRUE", "FALSE", "'[1,2,{\"a\":3}]'", "'{\"a\":1,\"b\":[null,true,\"x\"]}'", "'%'", "'_b%'", "'a*'", "char(0)", "'a'||char(0)||'b'", "1_000", "0xff", "1e2",
}

func (g *generator) literal() string { return literals[g.IntN(len(literals))] }

// leaf returns an expression without operands.
func (g *generator) leaf(s scope) string {
	switch n := g.IntN(100); {
	case n < 65 && len(s) > 0:
		return g.column(s)
	case n < 80 && g.style != noParams && !g.sealed:
		return g.parameter()
	case n < 83 && !g.sealed && g.features.nondeterministic:
		return g.pick("random()", "abs(random()%10)", "('abc' REGEXP 'b.')", "datetime('now','localtime')", "hex(randomblob(4))", "datetime('now')", "CURRENT_TIMESTAMP", "julianday('now')", "strftime('%f','now')", "unixepoch('now','subsec')")
	case n < 85 && !g.sealed && g.features.counters:
		return g.pick("changes()", "last_insert_rowid()")
	}
	return g.literal()
}

// parameter returns a placeholder of a parameter, which resolve replaces.
func (g *generator) parameter() string {
	g.values = append(g.values, g.argument())
	return fmt.Sprintf("\x01%d\x02", len(g.values)-1)
}

// resolve replaces the placeholders of a complete statement by parameters, and returns
// their arguments in order.
func (g *generator) resolve(text string) (string, []any) {
	var args []any
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, "\x01")
		b.WriteString(before)
		if !found {
			return b.String(), args
		}
		digits, after, _ := strings.Cut(rest, "\x02")
		text = after
		index, err := strconv.Atoi(digits)
		if err != nil {
			panic(err)
		}
		v := g.values[index]
		switch {
		case g.style == numberedParams && len(args) > 0 && g.chance(20):
			fmt.Fprint(&b, "?", 1+g.IntN(len(args)))
		case g.style == numberedParams:
			args = append(args, v)
			fmt.Fprint(&b, "?", len(args))
		case g.style == namedParams:
			name := fmt.Sprint("p", len(args))
			args = append(args, named{name, v})
			b.WriteString(g.pick(":", "@", "$") + name)
		default:
			args = append(args, v)
			b.WriteString("?")
		}
	}
}

// expression returns an expression of at most this depth.
func (g *generator) expression(s scope, depth int) string {
	if depth <= 0 || g.chance(25) {
		return g.leaf(s)
	}
	e := func() string { return g.expression(s, depth-1) }
	switch g.IntN(22) {
	case 0, 1, 2:
		return "(" + e() + g.pick("+", " - ", "*", "/", "%", "||", "&", "|", "<<", ">>") + e() + ")"
	case 3, 4:
		return "(" + e() + g.pick("=", "<>", "<", ">", "<=", ">=", " IS ", " IS NOT ", " AND ", " OR ", " IS NOT DISTINCT FROM ") + e() + g.maybe(20, " COLLATE "+g.collation()) + ")"
	case 5:
		return "(" + g.pick("- ", "+", "~", "NOT ") + e() + ")"
	case 6:
		return "CAST(" + e() + " AS " + g.pick("INT", "TEXT", "REAL", "BLOB", "NUMERIC") + ")"
	case 7:
		return "CASE " + g.maybe(30, e()) + " WHEN " + e() + " THEN " + e() + g.maybe(70, " ELSE "+e()) + " END"
	case 8:
		return "(" + e() + g.pick(" LIKE ", " GLOB ", " NOT LIKE ") + e() + ")"
	case 9:
		return "(" + e() + g.pick(" IN (", " NOT IN (") + list(g.IntN(4), func(int) string { return e() }) + "))"
	case 10:
		return "(" + e() + g.pick(" BETWEEN ", " NOT BETWEEN ") + e() + " AND " + e() + ")"
	case 11:
		return "(" + e() + g.pick(" ISNULL", " NOTNULL", " IS TRUE", " IS NOT FALSE") + ")"
	case 12:
		return "(" + e() + " COLLATE " + g.collation() + ")"
	case 13, 14:
		if depth > 1 && !g.sealed {
			return g.subquery(s, depth-1)
		}
		return e()
	case 15:
		return g.json(e)
	case 16:
		return g.date(e)
	case 17:
		return "((" + e() + "," + e() + ")" + g.pick("=", "<", ">=", " IS ") + "(" + e() + "," + e() + "))"
	}
	return g.function(e)
}

func (g *generator) collation() string { return g.pick("NOCASE", "BINARY", "RTRIM") }

func (g *generator) function(e func() string) string {
	switch g.IntN(26) {
	case 0:
		return "abs(" + e() + ")"
	case 1:
		return g.pick("coalesce(", "ifnull(", "nullif(") + e() + "," + e() + ")"
	case 2:
		return g.pick("min(", "max(", "iif(1,", "concat(") + e() + "," + e() + ")"
	case 3:
		return g.pick("length(", "octet_length(", "typeof(", "hex(", "quote(", "unicode(", "lower(", "upper(") + e() + ")"
	case 4:
		return g.pick("trim(", "ltrim(", "rtrim(") + e() + g.maybe(40, ","+e()) + ")"
	case 5:
		return "substr(" + e() + "," + g.pick("0", "1", "2", "-1", "-3", e()) + g.maybe(60, ","+g.pick("1", "2", "-1", "100")) + ")"
	case 6:
		return g.pick("replace(", "instr(") + e() + ",'a'" + ")"
	case 7:
		return "replace(" + e() + "," + e() + "," + e() + ")"
	case 8:
		return "round(" + e() + g.maybe(50, ","+g.pick("0", "1", "2", "15")) + ")"
	case 9:
		return g.pick("sqrt(", "exp(", "ln(", "sin(", "cos(", "atan(", "floor(", "ceil(", "trunc(", "log10(", "degrees(", "tanh(") + e() + ")"
	case 10:
		return g.pick("pow(", "mod(", "atan2(", "log(") + e() + "," + e() + ")"
	case 11:
		return "printf(" + g.pick("'%d'", "'%s|%5s'", "'%.3f'", "'%g'", "'%!.15g'", "'%x'", "'%q'", "'%Q'", "'%w'", "'%,d'", "'%c'", "'%e'", "'%08.2f'", "'%-5d|'") + "," + e() + g.maybe(30, ","+e()) + ")"
	case 12:
		return g.pick("char(65,"+e()+")", "unhex("+e()+")", "sign("+e()+")", "soundex("+e()+")")
	case 13:
		return "zeroblob(" + g.pick("0", "2", "5") + ")"
	case 14:
		return "likelihood(" + e() + ",0.5)"
	case 15:
		return g.pick("likely(", "unlikely(") + e() + ")"
	case 16:
		return "iif(" + e() + "," + e() + "," + e() + ")"
	case 17:
		return "glob(" + g.pick("'a*'", e()) + "," + e() + ")"
	case 18:
		return "like(" + e() + "," + e() + g.maybe(30, ",'x'") + ")"
	case 19:
		return "concat_ws(" + g.pick("'-'", e()) + "," + e() + "," + e() + ")"
	case 20:
		return "format(" + e() + "," + e() + ")"
	case 21:
		return "string_agg_is_not_one_" + g.pick("a", "b") + "(" + e() + ")" // an error
	}
	return g.pick("typeof(", "quote(", "abs(", "length(") + e() + ")"
}

func (g *generator) json(e func() string) string {
	doc := g.pick("'[1,2,{\"a\":3}]'", "'{\"a\":1,\"b\":[null,true,\"x\"],\"c\":1e400}'", "json_array("+e()+",1)", "json_object('k',"+g.pick("1", "'x'", "NULL", "1.5")+")", e())
	path := g.pick("'$'", "'$.a'", "'$[1]'", "'$[#-1]'", "'$.b[2]'", "'$.nope'")
	switch g.IntN(12) {
	case 0:
		return "json_extract(" + doc + "," + path + ")"
	case 1:
		return "(" + doc + g.pick("->", "->>") + path + ")"
	case 2:
		return "json_array(" + g.pick("1", "'x'", "NULL") + "," + g.pick("2.5", "json('[1]')") + ")"
	case 3:
		return g.pick("json_set(", "json_insert(", "json_replace(") + doc + "," + path + "," + g.pick("1", "'n'", "json('{}')") + ")"
	case 4:
		return "json_remove(" + doc + "," + path + ")"
	case 5:
		return "json_type(" + doc + g.maybe(50, ","+path) + ")"
	case 6:
		return "json_valid(" + e() + g.maybe(30, ",6") + ")"
	case 7:
		return "json_quote(" + e() + ")"
	case 8:
		return "json_patch(" + doc + ",'{\"a\":null,\"z\":1}')"
	case 9:
		return g.pick("json("+doc+")", "hex(jsonb("+doc+"))", "json_pretty("+doc+")")
	case 10:
		return "json_array_length(" + doc + ")"
	}
	return "json_error_position(" + e() + ")"
}

func (g *generator) date(e func() string) string {
	when := g.pick("'2024-02-29'", "'2024-02-29 12:34:56.789'", "2460000.5", "1700000000", "'12:00'", "'0000-01-01'", "'9999-12-31 23:59:59'", "'2024-02-29T12:00:00+02:00'", e())
	modifier := g.maybe(60, ","+g.pick("'+1 month'", "'-1 day'", "'start of year'", "'weekday 0'", "'unixepoch'", "'auto'", "'julianday'", "'+1.5 hours'", "'subsec'", "'floor'", "'ceiling'", "'+0001-01-01'", "'utc'"))
	switch g.IntN(4) {
	case 0:
		return "strftime(" + g.pick("'%Y-%m-%d'", "'%s'", "'%J'", "'%f'", "'%W %w %j'", "'%G-%V %u'", "'%e %k %l %p %P %I'", "'%R %T %F'") + "," + when + modifier + ")"
	case 1:
		return "timediff(" + when + "," + g.pick("'2024-01-01'", "'2023-03-31 10:00'") + ")"
	}
	return g.pick("date(", "time(", "datetime(", "julianday(", "unixepoch(") + when + modifier + ")"
}
