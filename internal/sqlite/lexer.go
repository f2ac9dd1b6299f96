package sqlite

import "strings"

// firstStatement returns the length of the first statement of a text, including its
// semicolon, and its first word. It finds the end by the rules of sqlite3_complete, which knows
// strings, comments and the bodies of triggers. sqlite3_prepare reports the end of a
// statement only if it can prepare it, and it cannot if the statement uses a table that
// an earlier statement of the text will create.
func firstStatement(text string) (length int, word string) {
	const (
		start = iota
		normal
		explain
		create
		trigger
		semi // after a semicolon in the body of a trigger
		end
	)
	state := start
	for i := 0; i < len(text); {
		kind, n := firstToken(text[i:])
		at := text[i : i+n]
		i += n
		if kind == space {
			continue
		}
		if kind == semicolon {
			switch state {
			case start:
				continue
			case trigger, semi:
				state = semi
				continue
			}
			return i, word
		}
		if state == start && kind == identifier {
			word = upper(at)
		}
		is := func(keyword string) bool { return kind == identifier && strings.EqualFold(at, keyword) }
		switch {
		case state == start && is("EXPLAIN"):
			state = explain
		case (state == start || state == explain) && is("CREATE"):
			state = create
		case state == explain && (is("QUERY") || is("PLAN")), state == create && (is("TEMP") || is("TEMPORARY")):
		case state == create && is("TRIGGER"):
			state = trigger
		case state == semi && is("END"):
			state = end
		case state == semi, state == end, state == trigger:
			state = trigger
		default:
			state = normal
		}
	}
	return len(text), word
}

type tokenKind int

const (
	other tokenKind = iota
	space
	semicolon
	identifier
)

// firstToken returns the kind and length of the first token of a text.
func firstToken(text string) (tokenKind, int) {
	// until returns the length of a token that ends with closing.
	until := func(from int, closing string) int {
		if i := strings.Index(text[from:], closing); i >= 0 {
			return from + i + len(closing)
		}
		return len(text)
	}
	switch c := text[0]; {
	case c == ';':
		return semicolon, 1
	case strings.IndexByte(" \t\n\f\r", c) >= 0:
		return space, 1
	case strings.HasPrefix(text, "--"):
		return space, until(2, "\n")
	case strings.HasPrefix(text, "/*"):
		return space, until(2, "*/")
	case c == '[':
		return other, until(1, "]")
	case c == '\'' || c == '"' || c == '`':
		return other, until(1, text[:1])
	case idChar(c):
		n := 1
		for n < len(text) && idChar(text[n]) {
			n++
		}
		return identifier, n
	}
	return other, 1
}

func idChar(c byte) bool {
	return c == '_' || c == '$' || c >= 0x80 || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}
