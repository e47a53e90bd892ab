#!/usr/bin/perl
# Each request reads it from its beginning.
use strict;
print tell(DATA) > 0 ? "positioned\n" : "at 0\n";
my $first = <DATA>;
print "first: $first";
my $at = tell DATA;
print while <DATA>;
seek DATA, $at, 0;
print "again: ", scalar <DATA>;
print "line $.\n";
seek DATA, 0, 0;
print "whole: ", scalar <DATA>;
die "with data" if eof(DATA);
__DATA__
line one
line two
line three
