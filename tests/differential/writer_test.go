package differential

import (
	"math/rand/v2"
	"strings"
)

// A writer makes the steps of a script, one after the other.
type writer struct {
	generator
	stale bool // the schema may have changed since it was read
	of    int  // the connection whose schema was read; each has its own TEMP objects
	kept  [connections][3]string
	heavy int // number of steps before the next restart is allowed
}

func newWriter(seed uint64) *writer {
	w := &writer{generator: generator{Rand: rand.New(rand.NewPCG(seed, 7))}, stale: true}
	w.schema = &schema{}
	w.features = enabled
	w.heavy = 50 + w.IntN(400) // so that not every round has one
	return w
}

// enabled are the features for the comparison of two databases.
var enabled = features{settings: true, temp: true}

// next returns a step that suits the state of the databases.
func (w *writer) next(r *runner) step {
	conn := 0
	if w.chance(20) {
		conn = w.IntN(connections)
	}
	busy := -1 // the connection whose transaction other writers would wait for
	for i, open := range r.open {
		if open {
			busy = i
		}
	}
	if busy >= 0 && w.chance(90) {
		conn = busy
	}
	if w.stale || w.of != conn || len(r.done)%10 == 0 || busy >= 0 {
		w.read(r, conn)
	}
	w.heavy--
	w.features.counters = !r.counted[conn].differ()
	s := w.step(conn, busy)
	if s.how != restart && s.how != snapshot {
		s.conn = conn
	}
	if s.how != compareAll && !changesRows(s.text) && !strings.HasPrefix(s.text, "SELECT") {
		w.stale = true
	}
	return s
}

func (w *writer) read(r *runner, conn int) {
	ctx, cancel := stepContext()
	defer cancel()
	s, err := readSchema(ctx, r.reference.conns[conn])
	if err == nil {
		w.schema, w.stale, w.of = s, false, conn
	}
}

func (w *writer) step(conn, busy int) step {
	if w.heavy <= 0 && busy < 0 {
		w.heavy = 300
		return step{how: []how{restart, snapshot}[w.IntN(2)], conn: w.IntN(3)}
	}
	if busy >= 0 && busy != conn {
		w.begin(w.anyStyle())
		return w.as(w.query()) // a write would wait and fail
	}
	switch n := w.IntN(100); {
	case n < 3:
		return step{how: compareAll}
	case n < 4:
		return step{how: reconnect}
	case n < 7:
		w.begin(noParams)
		return step{how: exec, text: w.script()}
	case n < 12:
		w.begin(noParams)
		return step{how: exec, text: w.transaction(busy >= 0)}
	case n < 15 && w.features.settings:
		return step{how: how(w.IntN(4)), text: w.setting(busy >= 0)}
	case n < 19:
		return w.keep(conn)
	case n < 34:
		w.begin(noParams)
		return w.as(w.change())
	case n < 62:
		w.begin(w.anyStyle())
		return w.as(w.write())
	case n < 64:
		w.begin(noParams)
		return w.as(w.broken())
	}
	w.begin(w.anyStyle())
	return w.as(w.query())
}

// as returns a step that runs the statement in one of the ways.
func (w *writer) as(text string) step {
	text, args := w.resolve(text)
	return step{how: how(w.IntN(4)), text: text, args: args}
}

// setting returns a PRAGMA that changes the meaning of the connection's statements.
func (w *writer) setting(open bool) string {
	if !open && w.chance(25) {
		return "PRAGMA foreign_keys" + w.pick("=0", "=1", "=ON", "(off)") // SQLite ignores it in a transaction
	}
	// Outside of a transaction, SQLite resets defer_foreign_keys with the next statement
	// that reads a table, and hiqlite with the next write. Only SQLite forgets violations
	// when it is switched off.
	if open && w.chance(10) {
		return "PRAGMA defer_foreign_keys=1"
	}
	if w.chance(10) {
		return "PRAGMA query_only=" + w.pick("1", "0", "0", "0")
	}
	return "PRAGMA " + w.pick("recursive_triggers", "ignore_check_constraints", "legacy_alter_table", "reverse_unordered_selects", "trusted_schema", "full_column_names", "short_column_names", "case_sensitive_like", "cell_size_check", "automatic_index") + w.pick("=0", "=1", "=on", "(false)")
}

// keep returns a step that prepares a statement, or that runs a prepared one.
func (w *writer) keep(conn int) step {
	slot := w.IntN(len(w.kept[conn]))
	text := w.kept[conn][slot]
	if !w.features.counters && usesCounters(text) {
		text = "" // by intention, the counters of the two differ at the moment
	}
	if text != "" && w.chance(70) {
		return step{how: runKept, slot: slot, text: text}
	}
	w.begin(noParams)
	text = w.query()
	if w.chance(40) {
		text = w.write()
	}
	w.kept[conn][slot] = text
	return step{how: keepPrepared, slot: slot, text: text}
}

func (w *writer) script() string {
	var all []string
	for range 2 + w.IntN(3) {
		next := w.write()
		if w.chance(20) {
			next = w.change()
		}
		if next != "VACUUM" { // VACUUM fails in a transaction
			all = append(all, next)
		}
	}
	return strings.Join(all, ";\n")
}

func (w *writer) transaction(open bool) string {
	if !open {
		return w.pick("BEGIN", "BEGIN", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE", "SAVEPOINT a", "COMMIT", "ROLLBACK")
	}
	return w.pick("COMMIT", "COMMIT", "END", "ROLLBACK", "SAVEPOINT a", "SAVEPOINT a", "SAVEPOINT b", "RELEASE a", "ROLLBACK TO a", "ROLLBACK TO b", "RELEASE b", "BEGIN")
}

// broken returns a valid text with a part missing, which usually is an error.
func (w *writer) broken() string {
	text := w.pick(w.query(), w.write(), w.change())
	words := strings.Fields(text)
	i := w.IntN(len(words))
	switch w.IntN(3) {
	case 0:
		words = append(words[:i], words[i+1:]...)
	case 1:
		words = append(words[:i], append([]string{w.pick("(", ")", ",", "SELECT", "nope", "'", "1", "IF", "AS", "@")}, words[i:]...)...)
	default:
		words = words[:i+1]
	}
	return strings.Join(words, " ")
}
