package main

import "strings"

// A splitter divides a text into statements. It knows as much of SQL as is needed to
// find their ends: comments, quoted texts, and the bodies of triggers.
type splitter struct {
	rest string
}

// next returns the next statement, with its semicolon. Complete is false if the text
// ends before the statement does; then rest is still the whole of it. An empty
// statement is "".
func (s *splitter) next() (statement string, complete bool) {
	var (
		words   int  // of the statement, as far as they decide whether it is a trigger
		trigger bool // CREATE [TEMP] TRIGGER
		depth   int  // of BEGIN and CASE in the body of a trigger
	)
	text := s.rest
	for i := 0; i < len(text); {
		end, kind := token(text[i:])
		end += i
		switch {
		case kind == tokenOpen:
			return text, false
		case kind == tokenSemicolon && depth == 0:
			s.rest = text[end:]
			return strings.TrimSpace(text[:end]), true
		case kind == tokenWord:
			word := strings.ToUpper(text[i:end])
			switch {
			case words == 0 && word == "EXPLAIN", word == "QUERY" || word == "PLAN":
				// They stand before a statement.
			case words == 0 && word == "CREATE":
				words = 1
			case words == 1 && (word == "TEMP" || word == "TEMPORARY"):
			case words == 1 && word == "TRIGGER":
				trigger, words = true, 2
			case !trigger:
				words = 2
			case word == "BEGIN" || word == "CASE":
				depth++
			case word == "END" && depth > 0:
				depth--
			}
		}
		i = end
	}
	return text, false
}

// blank reports whether a text has nothing but white space, comments and semicolons.
func blank(text string) bool {
	for i := 0; i < len(text); {
		end, kind := token(text[i:])
		if kind != tokenSpace && kind != tokenSemicolon {
			return false
		}
		i += end
	}
	return true
}

type tokenKind int

const (
	tokenSpace  tokenKind = iota // white space and comments
	tokenWord                    // keywords, names, numbers
	tokenQuoted                  // texts, and names in quotation marks
	tokenSemicolon
	tokenOther
	tokenOpen // a quoted text or a comment that does not end
)

// token returns the length and the kind of the token with which a text begins.
func token(text string) (int, tokenKind) {
	c := text[0]
	switch {
	case strings.IndexByte(" \t\r\n\f", c) >= 0:
		return 1, tokenSpace
	case c == ';':
		return 1, tokenSemicolon
	case strings.HasPrefix(text, "--"):
		if i := strings.IndexByte(text, '\n'); i >= 0 {
			return i + 1, tokenSpace
		}
		return len(text), tokenSpace
	case strings.HasPrefix(text, "/*"):
		if i := strings.Index(text[2:], "*/"); i >= 0 {
			return i + 4, tokenSpace
		}
		return len(text), tokenOpen
	case c == '\'' || c == '"' || c == '`' || c == '[':
		quote := c
		if c == '[' {
			quote = ']'
		}
		i := strings.IndexByte(text[1:], quote)
		if i < 0 {
			return len(text), tokenOpen
		}
		return i + 2, tokenQuoted // a doubled quotation mark begins another token
	case wordByte(c):
		n := 1
		for n < len(text) && wordByte(text[n]) {
			n++
		}
		return n, tokenWord
	}
	return 1, tokenOther
}

func wordByte(c byte) bool {
	return c == '_' || c == '$' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}
