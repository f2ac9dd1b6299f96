package replica

import (
	"strings"

	"github.com/hiqlite/hiqlite/internal/sqlite"
)

// maxPrograms and maxProgramBytes bound the prepared statements that the apply
// connection keeps. Some programs write a new text for each row.
const (
	maxPrograms     = 512
	maxProgramBytes = 4 << 20
)

// programs keeps prepared statements of the apply connection by their text. It
// is emptied whenever the schema or the statistics change: a statement that
// SQLite prepares anew on its own counts its steps differently.
type programs struct {
	conn   *sqlite.Conn
	byText map[string]*program
	bytes  int
	clock  uint64
}

// A program is a single prepared statement.
type program struct {
	*sqlite.Stmt
	text string
	used uint64
	busy bool // a cursor has it: see Transaction
	gone bool // it is not kept any more: whom it is busy for closes it
}

func newPrograms(conn *sqlite.Conn) *programs {
	return &programs{conn: conn, byText: map[string]*program{}}
}

// get returns the program of text, if it is kept.
func (p *programs) get(text string) *program {
	found := p.byText[text]
	if found != nil {
		p.clock++
		found.used = p.clock
	}
	return found
}

// keep keeps a statement whose text, which it copies, holds nothing else.
func (p *programs) keep(text string, stmt *sqlite.Stmt) *program {
	if len(p.byText) >= maxPrograms || p.bytes+len(text) > maxProgramBytes {
		p.evict()
	}
	p.clock++
	text = strings.Clone(text)
	found := &program{Stmt: stmt, text: text, used: p.clock}
	p.byText[text] = found
	p.bytes += len(text)
	return found
}

// evict drops the half that was not used for longest.
func (p *programs) evict() {
	p.drop(p.clock - uint64(len(p.byText))/2)
	if len(p.byText) >= maxPrograms || p.bytes > maxProgramBytes {
		p.drop(p.clock)
	}
}

// drop drops those that were last used at limit or before.
func (p *programs) drop(limit uint64) {
	for text, found := range p.byText {
		if found.used <= limit && !found.busy {
			found.Close()
			delete(p.byText, text)
			p.bytes -= len(text)
		}
	}
}

// remove makes a program the caller's own.
func (p *programs) remove(found *program) {
	if p.byText[found.text] == found {
		delete(p.byText, found.text)
		p.bytes -= len(found.text)
	}
}

// forget drops all; those that are busy go on until whom they are busy for is
// done with them.
func (p *programs) forget() {
	for _, found := range p.byText {
		if found.busy {
			found.gone = true
		} else {
			found.Close()
		}
	}
	clear(p.byText)
	p.bytes = 0
}

func (p *programs) clear() {
	for _, found := range p.byText {
		found.Close()
	}
	clear(p.byText)
	p.bytes = 0
}
