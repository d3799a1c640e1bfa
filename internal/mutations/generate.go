package main

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
)

// swapped are operators and what they are mistaken for.
var swapped = map[token.Token]token.Token{
	token.LSS: token.LEQ, token.LEQ: token.LSS, token.GTR: token.GEQ, token.GEQ: token.GTR,
	token.EQL: token.NEQ, token.NEQ: token.EQL, token.LAND: token.LOR, token.LOR: token.LAND,
	token.ADD: token.SUB, token.SUB: token.ADD,
}

// A generator makes the obvious breakages of some lines of a file.
type generator struct {
	path   string
	source []byte
	files  *token.FileSet
	lines  map[int]bool
	edits  []edit
}

// generate returns an edit for each breakage of the lines. Some do not build, since it
// does not know the types.
func generate(path string, source []byte, lines map[int]bool) ([]edit, error) {
	g := &generator{path: path, source: source, files: token.NewFileSet(), lines: lines}
	parsed, err := parser.ParseFile(g.files, path, source, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var functions []*ast.FuncType // around the node
	var nodes []ast.Node
	ast.Inspect(parsed, func(n ast.Node) bool {
		if n == nil {
			if f := typeOf(nodes[len(nodes)-1]); f != nil {
				functions = functions[:len(functions)-1]
			}
			nodes = nodes[:len(nodes)-1]
			return true
		}
		nodes = append(nodes, n)
		if f := typeOf(n); f != nil {
			functions = append(functions, f)
		}
		var around *ast.FuncType
		if len(functions) > 0 {
			around = functions[len(functions)-1]
		}
		g.visit(n, around)
		return true
	})
	slices.SortStableFunc(g.edits, func(a, b edit) int { return cmp.Compare(a.start, b.start) })
	return g.edits, nil
}

func typeOf(n ast.Node) *ast.FuncType {
	switch n := n.(type) {
	case *ast.FuncDecl:
		return n.Type
	case *ast.FuncLit:
		return n.Type
	}
	return nil
}

func (g *generator) visit(n ast.Node, around *ast.FuncType) {
	switch n := n.(type) {
	case *ast.IfStmt:
		g.negate(n.Cond)
	case *ast.ForStmt:
		if n.Cond != nil {
			g.negate(n.Cond)
		}
	case *ast.SwitchStmt:
		g.cases(n)
	case *ast.BinaryExpr:
		if to, ok := swapped[n.Op]; ok {
			g.replace(n.OpPos, n.OpPos+token.Pos(len(n.Op.String())), to.String())
		}
	case *ast.DeferStmt, *ast.ExprStmt, *ast.IncDecStmt, *ast.BranchStmt, *ast.SendStmt:
		g.replace(n.Pos(), n.End(), "")
	case *ast.AssignStmt:
		if n.Tok != token.DEFINE {
			g.replace(n.Pos(), n.End(), "")
		}
	case *ast.ReturnStmt:
		g.forget(n, around)
	case *ast.BasicLit:
		g.literal(n)
	}
}

func (g *generator) negate(condition ast.Expr) {
	g.replace(condition.Pos(), condition.End(), "!("+g.text(condition)+")")
}

// cases negates the conditions of a switch without a value, takes one value out of a
// case that has several, and takes out a case that has one.
func (g *generator) cases(s *ast.SwitchStmt) {
	for _, statement := range s.Body.List {
		c := statement.(*ast.CaseClause)
		for i, value := range c.List {
			switch {
			case s.Tag == nil:
				g.negate(value)
			case len(c.List) == 1:
				g.replace(c.Pos(), c.End(), "")
			case i == 0:
				g.replace(value.Pos(), c.List[1].Pos(), "")
			default:
				g.replace(c.List[i-1].End(), value.End(), "")
			}
		}
	}
}

// forget returns no error where there is one.
func (g *generator) forget(r *ast.ReturnStmt, around *ast.FuncType) {
	if around == nil || around.Results == nil || len(r.Results) == 0 {
		return
	}
	results := around.Results.List
	kind, ok := results[len(results)-1].Type.(*ast.Ident)
	last := r.Results[len(r.Results)-1]
	if ok && kind.Name == "error" && g.text(last) != "nil" && (len(r.Results) > 1 || results[0] == results[len(results)-1]) {
		g.replace(last.Pos(), last.End(), "nil")
	}
}

// literal moves a number by one, and takes out a line of a statement that begins with
// "and".
func (g *generator) literal(l *ast.BasicLit) {
	if n, err := strconv.Atoi(l.Value); l.Kind == token.INT && err == nil {
		g.replace(l.Pos(), l.End(), fmt.Sprint(n+1))
		if n > 0 {
			g.replace(l.Pos(), l.End(), fmt.Sprint(n-1))
		}
	}
	if l.Kind != token.STRING || l.Value[0] != '`' {
		return
	}
	at := l.Pos()
	for line := range strings.SplitAfterSeq(l.Value, "\n") {
		text := strings.TrimRight(line, "`\n")
		if strings.HasPrefix(strings.TrimSpace(text), "and ") {
			g.replace(at, at+token.Pos(len(text)), "")
		}
		at += token.Pos(len(line))
	}
}

func (g *generator) text(n ast.Node) string {
	return string(g.source[g.offset(n.Pos()):g.offset(n.End())])
}

func (g *generator) offset(p token.Pos) int { return g.files.Position(p).Offset }

// replace adds an edit if it begins on one of the lines.
func (g *generator) replace(from, to token.Pos, text string) {
	line := g.files.Position(from).Line
	if !g.lines[line] {
		return
	}
	start, end := g.offset(from), g.offset(to)
	whole := strings.Split(string(g.source), "\n")[line-1]
	says := fmt.Sprintf("%s -> %s   in: %s", shortened(string(g.source[start:end])), cmp.Or(shortened(text), "nothing"), strings.TrimSpace(whole))
	g.edits = append(g.edits, edit{g.path, start, end, text, says})
}

// shortened is enough of a text to recognize it.
func shortened(text string) string {
	line := []rune(oneLine(text))
	if len(line) > 60 {
		return string(line[:60]) + "..."
	}
	return string(line)
}
