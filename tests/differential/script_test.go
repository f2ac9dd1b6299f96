package differential

import (
	"database/sql"
	"encoding/hex"
	"fmt"
	"math"
	"strings"
	"time"
)

// A script has the steps of one round. It can be run again, and shortened.
type script []step

// A step is a statement on one of the connections, or an action on the databases.
type step struct {
	conn int
	how  how
	slot int // of a prepared statement
	text string
	args []any
}

type how int

const (
	query how = iota
	exec
	preparedQuery
	preparedExec
	keepPrepared // prepares the text and keeps the statement in slot
	runKept      // runs the statement in slot as a query
	reconnect    // closes the connection and opens another one
	restart      // closes node conn and opens it again; all connections are new
	snapshot     // sends node conn a snapshot
	compareAll   // compares all rows
)

var hows = [...]string{"query", "exec", "prepared query", "prepared exec", "prepare and keep", "query what is kept", "reconnect", "restart the node", "send the node a snapshot", "compare all"}

// named is an argument with a name.
type named struct {
	name  string
	value any
}

// values returns the arguments for database/sql.
func (s step) values() []any {
	all := make([]any, len(s.args))
	for i, v := range s.args {
		if n, ok := v.(named); ok {
			v = sql.Named(n.name, n.value)
		}
		all[i] = v
	}
	return all
}

// String returns the step as SQL, with comments for what SQL cannot say.
func (s step) String() string {
	var notes []string
	if s.conn != 0 {
		notes = append(notes, fmt.Sprint("connection ", s.conn))
	}
	if s.how != exec {
		notes = append(notes, hows[s.how])
	}
	if s.how == keepPrepared || s.how == runKept {
		notes = append(notes, fmt.Sprint("slot ", s.slot))
	}
	for i, v := range s.args {
		if n, ok := v.(named); ok {
			notes = append(notes, n.name+" = "+shown(n.value))
		} else {
			notes = append(notes, fmt.Sprintf("?%d = %s", i+1, shown(v)))
		}
	}
	text := s.text
	if text != "" {
		text += ";"
	}
	if len(notes) > 0 {
		text = strings.TrimSpace(text + " -- " + strings.Join(notes, ", "))
	}
	return text
}

func (s script) String() string {
	var b strings.Builder
	for _, step := range s {
		b.WriteString(step.String() + "\n")
	}
	return b.String()
}

// shown returns an argument as a literal, if there is one.
func shown(v any) string {
	if text, ok := literal(v); ok {
		return text
	}
	return fmt.Sprintf("%T(%#v)", v, v)
}

// literal returns an argument as a literal of SQL.
func literal(v any) (string, bool) {
	switch v := v.(type) {
	case nil:
		return "NULL", true
	case int64:
		return fmt.Sprint(v), v != math.MinInt64
	case bool:
		return fmt.Sprint(boolean(v)), true
	case float64:
		if math.IsInf(v, 0) || math.IsNaN(v) || v == 0 {
			return "", false
		}
		return fmt.Sprintf("%.17e", v), true
	case string:
		if strings.ContainsRune(v, 0) {
			return "", false
		}
		return "'" + strings.ReplaceAll(v, "'", "''") + "'", true
	case []byte:
		if v == nil {
			return "NULL", true
		}
		return "x'" + hex.EncodeToString(v) + "'", true
	}
	return "", false
}

var odd = []any{
	int64(0), int64(1), int64(2), int64(5), int64(-1), int64(math.MaxInt64 - 1000), int64(math.MinInt64), int64(1) << 53, int64(1)<<53 + 1,
	1.0, 1.5, math.Copysign(0, -1), 0.1, 1e300, math.SmallestNonzeroFloat64, math.Inf(1), math.Inf(-1), math.NaN(), 9007199254740993.0,
	"", "a", "A", "abc", "ä", "1", " 5 ", "a\x00b", "\xff\xfe", "😀", "2024-02-29", "it's", "12abc", "9223372036854775808",
	[]byte{}, []byte(nil), []byte{0}, []byte("abc"), []byte{0xff}, nil, nil, true, false,
}

var zones = []*time.Location{time.UTC, time.FixedZone("CET", 3600), time.FixedZone("", -4*3600), time.FixedZone("UTC+8", 8*3600)}

// argument returns a value for a parameter.
func (g *generator) argument() any {
	if g.chance(5) {
		return time.Unix(1700000000+int64(g.IntN(1e6)), int64(g.IntN(3))*1e6).In(zones[g.IntN(len(zones))])
	}
	return odd[g.IntN(len(odd))]
}
