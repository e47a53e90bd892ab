#!/usr/bin/perl
use strict; use warnings;
use open qw(:std :encoding(UTF-8));
# body: \xc3\xa9\n
my $c = <STDIN>; chomp $c;
print ord($c), " ", length $c, " $c\n";
print join(",", map { join ":", PerlIO::get_layers($_) } *STDIN, *STDOUT, *STDERR), "\n";
