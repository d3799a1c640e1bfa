package main

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
)

// own is the package's postgres.go, as it stands on the disk now. The package does
// not export its statements, and a copy would be one more place to change.
type own struct {
	constants map[string]ast.Expr
	replaced  []ast.Expr // what newStatements gives to strings.NewReplacer
}

var readOwn = sync.OnceValues(func() (*own, error) {
	path, err := ownPath()
	if err != nil {
		return nil, err
	}
	return parseOwn(path, nil)
})

// ownPath finds the file from each folder below it: the program runs in bench, and
// its tests in bench/variants.
func ownPath() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		path := filepath.Join(dir, "postgres.go")
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("there is no postgres.go in this folder or above: run this in the folder bench of the package's source")
		}
		dir = filepath.Dir(dir)
	}
}

// parseOwn reads the file, or src where it is not nil.
func parseOwn(path string, src any) (*own, error) {
	file, err := parser.ParseFile(token.NewFileSet(), path, src, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	o := &own{constants: map[string]ast.Expr{}}
	for _, decl := range file.Decls {
		switch decl := decl.(type) {
		case *ast.GenDecl:
			o.declared(decl)
		case *ast.FuncDecl:
			if decl.Name.Name == "newStatements" {
				o.replaced = replacerArgs(decl)
			}
		}
	}
	if len(o.replaced) == 0 {
		return nil, fmt.Errorf("%s: newStatements does not call strings.NewReplacer: how does the table's name get into a statement?", path)
	}
	return o, nil
}

func (o *own) declared(decl *ast.GenDecl) {
	if decl.Tok != token.CONST {
		return
	}
	for _, spec := range decl.Specs {
		spec := spec.(*ast.ValueSpec)
		for i, value := range spec.Values {
			o.constants[spec.Names[i].Name] = value
		}
	}
}

func replacerArgs(decl *ast.FuncDecl) (args []ast.Expr) {
	ast.Inspect(decl, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		if called, ok := call.Fun.(*ast.SelectorExpr); ok && called.Sel.Name == "NewReplacer" {
			args = call.Args
		}
		return true
	})
	return args
}

// constant is the text of one, put together.
func (o *own) constant(name string) (string, error) {
	value, ok := o.constants[name]
	if !ok {
		return "", fmt.Errorf("postgres.go has no constant %s", name)
	}
	return o.text(value)
}

func (o *own) text(e ast.Expr) (string, error) {
	switch e := e.(type) {
	case *ast.Ident:
		return o.constant(e.Name)
	case *ast.BasicLit:
		if e.Kind == token.STRING {
			return strconv.Unquote(e.Value)
		}
	case *ast.BinaryExpr:
		left, err := o.text(e.X)
		if err != nil {
			return "", err
		}
		right, err := o.text(e.Y)
		return left + right, err
	}
	return "", fmt.Errorf("postgres.go has a text that is neither quoted nor a sum of such: %T", e)
}

var placeholder = regexp.MustCompile(`\{(\w+)\}`)

// expand puts in the package's constants, where a text has their {name}.
func (o *own) expand(text string) (string, error) {
	var missing error
	text = placeholder.ReplaceAllStringFunc(text, func(name string) string {
		value, err := o.constant(strings.Trim(name, "{}"))
		missing = errors.Join(missing, err)
		return value
	})
	return text, missing
}

// onTable returns what newStatements does to a statement in a Store without
// Config.Schema that has found its table in this schema.
func (o *own) onTable(schema string) (func(string) string, error) {
	table := pgx.Identifier{schema, "idempotency_keys"}.Sanitize()
	values := map[string]string{
		"table":   table,
		"literal": "'" + strings.ReplaceAll(table, "'", "''") + "'",
		"path":    "'idempotency_keys'",

		"operations": pgx.Identifier{schema, "idempotency_operations"}.Sanitize(),
	}
	var pairs []string
	for _, arg := range o.replaced {
		name, ok := arg.(*ast.Ident)
		if value, known := values[fmt.Sprint(name)]; ok && known {
			pairs = append(pairs, value)
			continue
		}
		text, err := o.text(arg)
		if err != nil {
			return nil, fmt.Errorf("what newStatements exchanges: %w", err)
		}
		pairs = append(pairs, text)
	}
	if len(pairs)%2 != 0 {
		return nil, fmt.Errorf("newStatements exchanges %d texts, which are no pairs", len(pairs))
	}
	return strings.NewReplacer(pairs...).Replace, nil
}
