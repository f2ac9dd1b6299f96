package sqlite

import (
	"slices"
	"strings"
)

// A Kind says how a text is executed.
type Kind int

const (
	// Empty holds no statement.
	Empty Kind = iota
	// Read runs on the local replica.
	Read
	// Write goes through the log.
	Write
	// ConnPragma is a PRAGMA that the connection of database/sql executes: it sets
	// something that this connection keeps, or does what the node does by itself.
	ConnPragma
	// Transaction begins or ends a transaction or savepoint.
	Transaction
	// Vacuum goes through the log, alone in its entry.
	Vacuum
)

// A Class is what is known about a text before it runs. The node caches it for all
// connections with the same settings, so nothing in it may depend on the schema:
// not what a view or a trigger does, nor whether the table of a CREATE TABLE IF NOT
// EXISTS exists already.
type Class struct {
	Kind      Kind
	Script    bool     // more than one statement
	Parts     []Part   // of a script of reads and settings: its statements
	Params    []string // of a single statement: the names of its parameters
	Schema    bool     // a single statement that changes the schema, if there is something to change
	Temp      bool     // the text makes or uses TEMP objects; of a script of writes: it may
	TempOnly  bool     // a single Write that changes nothing but TEMP objects
	Pragma    string   // of a ConnPragma, or a Read that is a PRAGMA: its name
	PragmaArg string
	PragmaSet bool   // the PRAGMA has an argument
	Control   string // of a Transaction: BEGIN, COMMIT, ROLLBACK, SAVEPOINT, RELEASE, ROLLBACK TO
	Savepoint string // the name in the last three
	Immediate bool   // BEGIN IMMEDIATE or EXCLUSIVE
}

// A Part is one statement of a script.
type Part struct {
	SQL string
	Class
}

// Classify finds out how a text is to be executed. It has SQLite prepare the text on this
// connection, which is a ReadOnly, Speculate or Temp one. Nothing of the text runs.
func (c *Conn) Classify(sql string) (Class, error) {
	defer c.beginClassify()()
	before := c.settings
	defer func() { c.setFlags(before) }()
	var parts []Part
	text, err := c.text(sql)
	if err != nil {
		return Class{}, err
	}
	defer text.close()
	for rest := sql; rest != ""; {
		one, tail, err := c.classifyOne(text, rest)
		if err != nil {
			return Class{}, err
		}
		part := Part{rest[:len(rest)-len(tail)], one}
		rest = tail
		if one.Kind == Empty {
			continue
		}
		parts = append(parts, part)
		if p := Pragmas[one.Pragma]; one.Kind == ConnPragma && p.Kind == PragmaSetting {
			// The rest of the script is prepared under the new setting. (The
			// setting of LIKE only exchanges a function, which changes no class.)
			c.setFlags(p.Set(c.settings, one.PragmaArg))
		}
		if one.Kind == Transaction && (len(parts) > 1 || !IsBlank(rest)) {
			return Class{Kind: Transaction, Script: true, Control: one.Control, Savepoint: one.Savepoint}, nil
		}
		if one.Kind == Write && !IsBlank(rest) {
			// Later statements may use tables that this write makes, so they can
			// be prepared only when the script is applied.
			return c.scriptOfWrites(sql, rest), nil
		}
	}
	switch len(parts) {
	case 0:
		return Class{}, nil
	case 1:
		return parts[0].Class, nil
	}
	class, err := scriptOfParts(parts)
	class.Temp = class.Kind == Write && MentionsTemp(sql)
	return class, err
}

// beginClassify makes the connection classify texts until done is called. Classifying
// runs EXPLAIN, which sets changes() to 0, so done restores it.
func (c *Conn) beginClassify() (done func()) {
	c.classifying = true
	changes, total, id := c.Changes(), c.TotalChanges(), c.LastInsertID()
	return func() {
		c.classifying = false
		c.SetState(changes, total, id)
	}
}

// ClassifyFirst classifies the first statement of a text, and returns the text after it.
func (c *Conn) ClassifyFirst(sql string) (Part, string, error) {
	defer c.beginClassify()()
	length, _ := firstStatement(sql) // a long script is not copied for each of its statements
	class, tail, err := c.classifyAlone(sql[:length])
	if err != nil && length < len(sql) {
		length = len(sql)
		class, tail, err = c.classifyAlone(sql)
	}
	length -= len(tail)
	return Part{sql[:length], class}, sql[length:], err
}

// classifyAlone classifies the first statement of a text, and returns the text after
// it.
func (c *Conn) classifyAlone(sql string) (Class, string, error) {
	text, err := c.text(sql)
	if err != nil {
		return Class{}, "", err
	}
	defer text.close()
	return c.classifyOne(text, sql)
}

// controls are the first words of statements that begin and end transactions.
var controls = map[string]bool{"BEGIN": true, "COMMIT": true, "END": true, "ROLLBACK": true, "SAVEPOINT": true, "RELEASE": true}

// scriptOfWrites classifies a script that writes. It looks for statements in rest that
// begin or end transactions; the others may not compile before the script runs.
func (c *Conn) scriptOfWrites(sql, rest string) Class {
	for rest != "" {
		length, word := firstStatement(rest)
		if controls[word] {
			one, _, err := c.classifyAlone(rest[:length])
			if err == nil && one.Kind == Transaction {
				return Class{Kind: Transaction, Script: true, Control: one.Control, Savepoint: one.Savepoint}
			}
		}
		rest = rest[length:]
	}
	return Class{Kind: Write, Script: true, Temp: MentionsTemp(sql)}
}

// scriptOfParts classifies a script by its statements.
func scriptOfParts(parts []Part) (Class, error) {
	script := Class{Kind: Read, Script: true, Parts: parts}
	for _, p := range parts {
		switch p.Kind {
		case Vacuum:
			return Class{}, VacuumNotAlone()
		case Write:
			return Class{Kind: Write, Script: true}, nil
		case ConnPragma:
			script.Kind = ConnPragma
		case Read:
			if p.Pragma != "" {
				script.Kind = ConnPragma // the connection of database/sql keeps the values of some PRAGMAs
			}
		}
	}
	return script, nil
}

// SameName reports whether SQLite takes two names for the same. It ignores the case of A to
// Z, and of no other letters.
func SameName(a, b string) bool { return lower(a) == lower(b) }

// IsBlank reports whether a text has no statement, only white space, comments and
// semicolons.
func IsBlank(text string) bool { return trimBlanks(text) == "" }

// trimBlanks returns a text without leading white space, comments and semicolons.
func trimBlanks(text string) string {
	for text != "" {
		switch {
		case strings.ContainsRune(" \t\n\f\r;", rune(text[0])):
			text = text[1:]
		case strings.HasPrefix(text, "--"):
			_, text, _ = strings.Cut(text, "\n")
		case strings.HasPrefix(text, "/*"):
			_, text, _ = strings.Cut(text[2:], "*/")
		default:
			return text
		}
	}
	return ""
}

// classifyOne classifies the first statement of sql, the end of a text.
func (c *Conn) classifyOne(text *text, sql string) (class Class, tail string, err error) {
	c.pragmaForCaller = false
	s, tail, err := text.prepare(sql, false)
	if a := &c.actions; err != nil && c.pragmaForCaller && a.Denied == nil {
		class = Class{Kind: ConnPragma, Pragma: a.Pragma, PragmaArg: a.PragmaArg, PragmaSet: a.PragmaSet}
		if Pragmas[a.Pragma].Kind == PragmaReplicated {
			class.Kind = Write
		}
		return class, tail, nil
	}
	if err != nil || s == nil {
		return class, tail, err
	}
	defer s.Close()
	returns := s.ColumnCount() > 0
	class = Class{Params: s.params, Schema: s.Actions.ChangesSchema && !s.Actions.FromDump, Temp: s.UsesTemp()}
	switch {
	case s.Actions.Transaction != "":
		class.Kind, class.Control, class.Savepoint = Transaction, s.Actions.Transaction, s.Actions.Savepoint
		if class.Control == "BEGIN" {
			var locks []int64 // the operand is not 0 if the transaction takes the write lock
			locks, err = c.operands(sql[:len(sql)-len(tail)], "Transaction")
			class.Immediate = slices.ContainsFunc(locks, func(p2 int64) bool { return p2 > 0 })
		}
	case s.Actions.Pragma != "" && (returns || s.ReadOnly()):
		class.Kind, class.Pragma = Read, s.Actions.Pragma
	case s.Explain(), returns && s.ReadOnly():
		class.Kind = Read
	default:
		class.Kind = Write
		class.Schema = class.Schema || changesSchema(sql)
		_, others := s.MayWrite()
		class.TempOnly = !others
		// SQLite does not call the authorizer for VACUUM before it runs.
		if !returns && !class.Schema && len(s.Actions.InsertsInto) == 0 {
			into, _ := c.operands(sql[:len(sql)-len(tail)], "Vacuum") // what cannot be explained is no VACUUM
			if len(into) > 0 {
				class.Kind = Vacuum
			}
			if len(into) > 0 && into[0] != 0 {
				err = LogicError("VACUUM INTO is not supported", "it would write a file on every node; take a backup instead")
			}
		}
	}
	return class, tail, err
}

// operands returns the operand P2 of each instruction with the given opcode in the program
// of a statement.
func (c *Conn) operands(sql, opcode string) (p2 []int64, err error) {
	s, _, err := c.Prepare("EXPLAIN "+trimBlanks(sql), false)
	if err != nil || s == nil {
		return nil, err
	}
	defer s.Close()
	for {
		row, err := s.Step()
		if err != nil || !row {
			return p2, err
		}
		if string(s.Bytes(1)) == opcode {
			p2 = append(p2, s.Int(3))
		}
	}
}

func isSyntax(message string) bool {
	return strings.Contains(message, "syntax error") || strings.Contains(message, "incomplete input") || strings.Contains(message, "unrecognized token")
}

// changesSchema reports whether the first statement of a text is CREATE, DROP or
// ALTER, even if it would change nothing, as CREATE TABLE IF NOT EXISTS may.
func changesSchema(sql string) bool {
	for sql != "" {
		kind, n := firstToken(sql)
		if kind == identifier {
			switch upper(sql[:n]) {
			case "CREATE", "DROP", "ALTER":
				return true
			}
		}
		if kind != space && kind != semicolon {
			return false
		}
		sql = sql[n:]
	}
	return false
}
