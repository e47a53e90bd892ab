#!/usr/bin/perl
# Counts the words of a text: a form, its answer, errors. Core Perl alone.
use strict;
use warnings;
use utf8;

binmode STDIN;
binmode STDOUT, ':encoding(UTF-8)';

sub answer {
    my ($status, $title, $body, @fields) = @_;
    print map { "$_\n" } "Status: $status", 'Content-Type: text/html; charset=utf-8', @fields, '';
    print qq{<!doctype html><html lang="en"><title>$title</title><h1>$title</h1>\n$body\n</html>\n};
    exit 0;
}

sub escape {
    my ($text) = @_;
    my %entity = ('&' => '&amp;', '<' => '&lt;', '>' => '&gt;', '"' => '&quot;');
    $text =~ s/([&<>"])/$entity{$1}/g;
    return $text;
}

# A form's body: name=value pairs, percent-encoded, in UTF-8.
sub form {
    my $length = $ENV{CONTENT_LENGTH} || 0;
    answer('413 Content Too Large', 'Too long', '<p>64 KiB will do.</p>') if $length > 65536;
    my $body = '';
    while (length $body < $length) {
        read(STDIN, $body, $length - length $body, length $body) or last;
    }
    my %form;
    for my $pair (split /&/, $body) {
        my ($name, $value) = map {
            my $text = $_;
            $text =~ tr/+/ /;
            $text =~ s/%([0-9A-Fa-f]{2})/chr hex $1/ge;
            utf8::decode($text);
            $text;
        } (split(/=/, $pair, 2), '')[0, 1];
        $form{$name} = $value;
    }
    return \%form;
}

my $method = $ENV{REQUEST_METHOD} || 'GET';

if ($method eq 'GET' || $method eq 'HEAD') {
    answer('200 OK', 'Count words', <<'HTML');
<form method="post"><label>Text <textarea name="text"></textarea></label> <button>Count</button></form>
HTML
}
elsif ($method eq 'POST') {
    my $text = form()->{text};
    answer('422 Unprocessable Content', 'Nothing to count', '<p>The field “text” is missing.</p>')
        unless defined $text;
    my %count;
    $count{ lc $1 }++ while $text =~ /(\w+)/g;
    my $rows = join '', map { '<tr><td>' . escape($_) . "</td><td>$count{$_}</td></tr>\n" }
        sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count;
    warn 'counted ' . keys(%count) . " words\n";
    answer('200 OK', 'Words', "<table>\n$rows</table>");
}
else {
    answer('405 Method Not Allowed', 'Not by this method', '', 'Allow: GET, HEAD, POST');
}
