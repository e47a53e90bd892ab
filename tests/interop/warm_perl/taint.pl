#!/usr/bin/perl -T
# query: x=/etc
use strict;
$ENV{PATH} = '/usr/bin:/bin'; delete @ENV{qw(IFS CDPATH ENV BASH_ENV)};
my ($q) = $ENV{QUERY_STRING} =~ /=(.*)/;
print "clean $q\n", `echo untainted $q`;
my $dirty = $ENV{QUERY_STRING};
eval { system "echo $dirty"; 1 } or print "refused: $@";
eval { open my $f, '>', $dirty or 1; 1 } or print "refused: $@";
print "${^TAINT} $0\n";
eval { my $x = `echo $ENV{SERVER_NAME}`; 1 } or print "refused: $@";
my $in = <STDIN>; eval { unlink $in; 1 } or print "refused: $@";
# body: somefile
