#!/usr/bin/perl -CSD
# body: gr\xc3\xbc\xc3\x9fe
use utf8;
my $in = <STDIN>;
print length($in), " $in ", "\x{263a}", "\n";
open my $f, '>', 'written.txt'; print $f "\x{e9}\x{263a}\n"; close $f;
print join(",", map { join ":", PerlIO::get_layers($_) } *STDIN, *STDOUT, *STDERR), "\n";
