#!/usr/bin/perl
package Thing;
sub new { my ($c, $n) = @_; bless { n => $n }, $c }
sub DESTROY { print "destroy $_[0]{n} ${^GLOBAL_PHASE}\n" }
package main;
# One alone lives to the end: of several, Perl leaves the order open.
my $lexical = Thing->new("lexical");
our $early; BEGIN { $early = Thing->new("compiled") }
{ my $inner = Thing->new("inner"); }
END { print "end\n" }
